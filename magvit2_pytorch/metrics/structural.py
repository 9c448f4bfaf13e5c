"""Structural similarity, of each clip: SSIM, and MS-SSIM over five scales.

Our own lines and not a library's, because the one at hand (torchmetrics) imports a torchvision that
is installed and does not work, and fails with it; tests hold these lines to its numbers.
"""

from collections.abc import Callable

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.types import VALUE_RANGE

WINDOW = 11
SIGMA = 1.5
"""The window's Gaussian, in pixels."""
STABILIZERS = (0.01**2, 0.03**2)
"""C1 and C2 for values from 0 to 1."""
MIN_SIDE = WINDOW // 2 + 1
"""Pixels to a side that SSIM takes at least: a window reflects half of itself at the edges."""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of MS-SSIM, from the finest scale to the coarsest (table 1 of its source)."""
MS_SSIM_MIN_SIDE = (WINDOW - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1
"""161 pixels, as is usual: the coarsest scale is then about as large as a window."""


@torch.no_grad()
def ssim(
    recon: Float[Tensor, "b c t h w"], real: Float[Tensor, "b c t h w"]
) -> Float[Tensor, " b"]:
    """SSIM of each clip, 1 where it equals its original: the mean over frames and channels.

    Both are in [-1, 1] and are clamped to it; SSIM compares brightness from 0 up, so it sees them
    in [0, 1]. Windows are Gaussian, 11 x 11 with a deviation of 1.5 pixels, and reflected at the
    edges. Raises `ValueError` where a side is below 6 pixels. Source: Wang et al., Image Quality
    Assessment: From Error Visibility to Structural Similarity, 2004, equation 13.
    """
    _check_size(real, MIN_SIDE, "SSIM")
    return _over_frames(lambda a, b: _similarity(a, b)[0], recon, real)


@torch.no_grad()
def ms_ssim(
    recon: Float[Tensor, "b c t h w"], real: Float[Tensor, "b c t h w"]
) -> Float[Tensor, " b"]:
    """MS-SSIM of each clip, as `ssim` but over five scales, each half as large as the one before.

    Raises `ValueError` unless both sides have 161 pixels or more. Negative similarities count as
    0, since their powers are no numbers. Source: Wang et al., Multi-Scale Structural Similarity
    for Image Quality Assessment, 2003, equation 7.
    """
    _check_size(real, MS_SSIM_MIN_SIDE, "MS-SSIM")
    return _over_frames(_multi_scale, recon, real)


def _over_frames(
    measure: Callable[[Tensor, Tensor], Tensor], recon: Tensor, real: Tensor
) -> Float[Tensor, " b"]:
    """The mean of a measure of pictures in [0, 1] over the frames of clips in [-1, 1]."""
    if recon.shape != real.shape:
        raise ValueError(f"recon {tuple(recon.shape)} and real {tuple(real.shape)} differ")
    low, high = VALUE_RANGE
    # One after the other: the moments of a frame take ten times its memory.
    frames = zip(recon.unbind(2), real.unbind(2), strict=True)
    values = [
        measure(*((x.float().clamp(low, high) - low) / (high - low) for x in pair))
        for pair in frames
    ]
    return torch.stack(values).mean(dim=0)


def _multi_scale(
    recon: Float[Tensor, "b c h w"], real: Float[Tensor, "b c h w"]
) -> Float[Tensor, " b"]:
    result = recon.new_ones(len(recon))
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale:
            recon, real = (F.avg_pool2d(x, 2) for x in (recon, real))
        whole, contrast = _similarity(recon, real)
        is_coarsest = scale == len(SCALE_WEIGHTS) - 1
        result = result * (whole if is_coarsest else contrast).clamp(min=0) ** weight
    return result


def _similarity(
    recon: Float[Tensor, "b c h w"], real: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """SSIM, and its factors for contrast and structure alone, of pictures in [0, 1].

    The latter over windows that lie wholly within the picture.
    """
    c1, c2 = STABILIZERS
    products = torch.stack((recon, real, recon * recon, real * real, recon * real))
    mean, mean_real, square, square_real, product = _blurred(products)
    variance = (square - mean**2).clamp(min=0) + (square_real - mean_real**2).clamp(min=0)
    contrast = (2 * (product - mean * mean_real) + c2) / (variance + c2)
    luminance = (2 * mean * mean_real + c1) / (mean**2 + mean_real**2 + c1)
    edge = slice(WINDOW // 2, -(WINDOW // 2))
    return (
        reduce(luminance * contrast, "b c h w -> b", "mean"),
        reduce(contrast[..., edge, edge], "b c h w -> b", "mean"),
    )


def _blurred(x: Float[Tensor, "k b c h w"]) -> Float[Tensor, "k b c h w"]:
    """Weighted means of the windows around each pixel: rows first, then columns."""
    offsets = torch.arange(WINDOW, device=x.device, dtype=x.dtype) - WINDOW // 2
    weights = torch.softmax(-(offsets**2) / (2 * SIGMA**2), dim=0)
    flat = F.pad(rearrange(x, "k b c h w -> (k b c) 1 h w"), (WINDOW // 2,) * 4, mode="reflect")
    flat = F.conv2d(F.conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return flat.view(x.shape)


def _check_size(clip: Tensor, least: int, name: str) -> None:
    height, width = clip.shape[-2:]
    if min(height, width) < least:
        raise ValueError(f"{height} x {width} pixels are too small for {name}: {least} to a side")

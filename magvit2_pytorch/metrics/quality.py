"""Quality of frames: PSNR, SSIM, MS-SSIM, block edges and temporal consistency."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.types import VALUE_RANGE


@torch.no_grad()
def psnr(
    recon: Float[Tensor, "b c *grid"], real: Float[Tensor, "b c *grid"]
) -> Float[Tensor, " b"]:
    """PSNR of each clip or image in dB: 10 log10(2^2 / MSE).

    The error is averaged over frames, channels and pixels. Inputs are in [-1, 1], a peak-to-peak
    range of 2, and are clamped to it. A clip equal to its original gives infinity.
    """
    return _decibels(reduce(_squared_error(recon, real), "b ... -> b", "mean"))


class StreamedPsnr:
    """`psnr` of one clip whose frames come in parts: `update`, then `compute`."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def update(self, recon: Float[Tensor, "b c *grid"], real: Float[Tensor, "b c *grid"]) -> None:
        """Add frames."""
        error = _squared_error(recon, real)
        self.total += float(error.sum(dtype=torch.float64))
        self.count += error.numel()

    def compute(self) -> float:
        """PSNR in dB of all frames so far."""
        return float(_decibels(torch.tensor(self.total / self.count, dtype=torch.float64)))


def _squared_error(recon: Tensor, real: Tensor) -> Tensor:
    difference = recon.float().clamp(*VALUE_RANGE) - real.float().clamp(*VALUE_RANGE)
    return difference.square()


def _decibels(error: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """PSNR of mean squared errors of values in the range of videos."""
    low, high = VALUE_RANGE
    return 10 * ((high - low) ** 2 / error).log10()


WINDOW = 11
SIGMA = 1.5
"""Standard deviation of the Gaussian window, in pixels."""
STABILIZERS = (0.01**2, 0.03**2)
"""C1 and C2 for values in [0, 1]."""
MIN_SIDE = WINDOW // 2 + 1
"""Smallest side in pixels for SSIM: reflection at the edges needs half a window."""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of MS-SSIM, from the finest scale to the coarsest (table 1 of its source)."""
MS_SSIM_MIN_SIDE = (WINDOW - 1) * 2 ** (len(SCALE_WEIGHTS) - 1) + 1
"""Smallest side for MS-SSIM, 161 pixels as usual: the coarsest scale is about one window."""


@torch.no_grad()
def ssim(
    recon: Float[Tensor, "b c t h w"], real: Float[Tensor, "b c t h w"]
) -> Float[Tensor, " b"]:
    """SSIM of each clip, averaged over frames and channels.

    Inputs are in [-1, 1], are clamped to it and mapped to [0, 1]. The window is Gaussian, 11 x 11
    with a standard deviation of 1.5 pixels; edges are reflected. Raises `ValueError` if a side is
    below 6 pixels. Source: Wang et al., Image Quality Assessment: From Error Visibility to
    Structural Similarity, 2004, equation 13.
    """
    _check_size(real, MIN_SIDE, "SSIM")
    return _mean_over_frames(lambda a, b: _similarity(a, b)[0], recon, real)


@torch.no_grad()
def ms_ssim(
    recon: Float[Tensor, "b c t h w"], real: Float[Tensor, "b c t h w"]
) -> Float[Tensor, " b"]:
    """MS-SSIM of each clip: `ssim` over five scales, halved each time.

    Raises `ValueError` unless both sides have 161 pixels or more. Negative similarities count as
    0, since their fractional powers are undefined. Source: Wang et al., Multi-Scale
    Structural Similarity for Image Quality Assessment, 2003, equation 7.
    """
    _check_size(real, MS_SSIM_MIN_SIDE, "MS-SSIM")
    return _mean_over_frames(_multi_scale, recon, real)


def _mean_over_frames(
    metric: Callable[[Tensor, Tensor], Tensor], recon: Tensor, real: Tensor
) -> Float[Tensor, " b"]:
    """Mean over frames of a metric of images in [0, 1]."""
    if recon.shape != real.shape:
        raise ValueError(f"recon {tuple(recon.shape)} and real {tuple(real.shape)} differ")
    low, high = VALUE_RANGE
    # One frame at a time: the moments of a frame take ten times its memory.
    frames = zip(recon.unbind(2), real.unbind(2), strict=True)
    values = [
        metric(*((x.float().clamp(low, high) - low) / (high - low) for x in pair))
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
        similarity, contrast = _similarity(recon, real)
        is_coarsest = scale == len(SCALE_WEIGHTS) - 1
        result = result * (similarity if is_coarsest else contrast).clamp(min=0) ** weight
    return result


def _similarity(
    recon: Float[Tensor, "b c h w"], real: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """SSIM of images in [0, 1]; contrast and structure of inner windows."""
    c1, c2 = STABILIZERS
    products = torch.stack((recon, real, recon * recon, real * real, recon * real))
    mean, mean_real, square, square_real, product = _gaussian_blur(products)
    variance = (square - mean**2).clamp(min=0) + (square_real - mean_real**2).clamp(min=0)
    contrast = (2 * (product - mean * mean_real) + c2) / (variance + c2)
    luminance = (2 * mean * mean_real + c1) / (mean**2 + mean_real**2 + c1)
    edge = slice(WINDOW // 2, -(WINDOW // 2))
    return (
        reduce(luminance * contrast, "b c h w -> b", "mean"),
        reduce(contrast[..., edge, edge], "b c h w -> b", "mean"),
    )


def _gaussian_blur(x: Float[Tensor, "k b c h w"]) -> Float[Tensor, "k b c h w"]:
    """Weighted mean of the window around each pixel, by two one-dimensional convolutions."""
    offsets = torch.arange(WINDOW, device=x.device, dtype=x.dtype) - WINDOW // 2
    weights = torch.softmax(-(offsets**2) / (2 * SIGMA**2), dim=0)
    flat = F.pad(rearrange(x, "k b c h w -> (k b c) 1 h w"), (WINDOW // 2,) * 4, mode="reflect")
    flat = F.conv2d(F.conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return flat.view(x.shape)


def _check_size(clip: Tensor, min_side: int, name: str) -> None:
    height, width = clip.shape[-2:]
    if min(height, width) < min_side:
        raise ValueError(
            f"{height} x {width} pixels are too small for {name}: give sides of {min_side} or more"
        )


@torch.no_grad()
def block_edges(video: Float[Tensor, "b c t h w"], period: int) -> Float[Tensor, " b"]:
    """Mean difference of neighbouring pixels across block edges, relative to inside.

    Blocks have `period` x `period` pixels, the first in the upper left corner. Rows and columns
    count alike. 1 if the edges cannot be told from other pixels, as in most originals; above 1, a
    grid shows. Raises `ValueError` unless frames have two blocks to each side and more.
    """
    if min(video.shape[-2:]) < 2 * period or period < 2:
        raise ValueError(f"{tuple(video.shape[-2:])} pixels are too few for blocks of {period}")
    ratios = []
    for axis in (-2, -1):
        change = video.float().clamp(*VALUE_RANGE).diff(dim=axis).abs().transpose(axis, -1)
        edge = torch.arange(change.shape[-1], device=video.device) % period == period - 1
        across, inside = (
            reduce(part, "b ... -> b", "mean") for part in (change[..., edge], change[..., ~edge])
        )
        ratios.append(across / inside)
    return (ratios[0] + ratios[1]) / 2


class TemporalConsistency(NamedTuple):
    """Squared frame differences of each clip, for values in [-1, 1]."""

    error: Float[Tensor, " b"]
    """Mean squared error of frame differences; 0 if every change is right."""
    energy: Float[Tensor, " b"]
    """Mean square of the original's frame differences: the error of a static reconstruction."""


@torch.no_grad()
def temporal_consistency(
    recon: Float[Tensor, "b c t h w"], real: Float[Tensor, "b c t h w"]
) -> TemporalConsistency:
    """Error of frame differences, and the energy to compare it with.

    With d(x)[t] = x[t + 1] - x[t], error = mean((d(recon) - d(real))^2) and energy =
    mean(d(real)^2). error / energy is 0 for correct motion and 1 for a static clip; above 1,
    flicker outweighs the motion. Inputs are in [-1, 1] and are clamped to it. Raises `ValueError`
    for a single frame.
    """
    if real.shape[2] < 2:
        raise ValueError("one frame has no motion: give two or more")
    changes = [x.float().clamp(*VALUE_RANGE).diff(dim=2) for x in (recon, real)]
    squares = (changes[0] - changes[1]).square(), changes[1].square()
    return TemporalConsistency(*(reduce(x, "b ... -> b", "mean") for x in squares))

"""Peak signal-to-noise ratio of each clip."""

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.types import VALUE_RANGE


@torch.no_grad()
def psnr(
    recon: Float[Tensor, "b c *grid"], real: Float[Tensor, "b c *grid"]
) -> Float[Tensor, " b"]:
    """PSNR of each clip or image in dB: 10 log10(2^2 / MSE).

    The error is averaged over frames, channels and pixels. Inputs are in [-1, 1], a peak-to-peak
    range of 2, and are clamped to it as a display would do. A clip equal to its original gives
    infinity, and then the mean over clips is infinite too. Tables report the mean over clips; the
    PSNR of the mean error is never above it.
    """
    low, high = VALUE_RANGE
    difference = recon.float().clamp(low, high) - real.float().clamp(low, high)
    error = reduce(difference.square(), "b ... -> b", "mean")
    return 10 * ((high - low) ** 2 / error).log10()

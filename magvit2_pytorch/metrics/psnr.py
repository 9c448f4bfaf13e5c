"""Peak signal-to-noise ratio, of each clip."""

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.types import VALUE_RANGE


@torch.no_grad()
def psnr(
    recon: Float[Tensor, "b c *grid"], real: Float[Tensor, "b c *grid"]
) -> Float[Tensor, " b"]:
    """10 log10(2^2 / MSE) in dB of each clip or image, over all its frames and channels.

    Both are in [-1, 1], 2 peak to peak, and are clamped to it, as a display would. A clip equal
    to its original gives infinity, and so does a mean over clips that holds one. Tables report
    the mean over clips; the PSNR of the mean error is another number, never above it.
    """
    low, high = VALUE_RANGE
    difference = recon.float().clamp(low, high) - real.float().clamp(low, high)
    error = reduce(difference.square(), "b ... -> b", "mean")
    return 10 * ((high - low) ** 2 / error).log10()

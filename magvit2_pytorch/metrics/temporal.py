"""Whether a reconstruction moves as its original does: neither flicker nor standing still."""

from typing import NamedTuple

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.types import VALUE_RANGE


class TemporalConsistency(NamedTuple):
    """Of each clip, in squares of values that go from -1 to 1."""

    error: Float[Tensor, " b"]
    """How far frame differences are from the original's; 0 where every change is right."""
    energy: Float[Tensor, " b"]
    """The original's own frame differences, squared: the error of a clip that stands still."""


@torch.no_grad()
def temporal_consistency(
    recon: Float[Tensor, "b c t h w"], real: Float[Tensor, "b c t h w"]
) -> TemporalConsistency:
    """Mean squared error of frame differences, and what it is to be read against.

    With d(x)[t] = x[t + 1] - x[t], error = mean((d(recon) - d(real))^2) and energy =
    mean(d(real)^2). What is wrong in every frame alike costs nothing here, flicker does. error /
    energy is 0 for the right motion and 1 for none; more says that flicker outweighs the motion.
    Both clips are in [-1, 1] and are clamped to it. Raises `ValueError` on a single frame.
    """
    if real.shape[2] < 2:
        raise ValueError("one frame has no motion: give two or more")
    changes = [x.float().clamp(*VALUE_RANGE).diff(dim=2) for x in (recon, real)]
    squares = (changes[0] - changes[1]).square(), changes[1].square()
    return TemporalConsistency(*(reduce(x, "b ... -> b", "mean") for x in squares))

"""Temporal consistency: the error of frame differences."""

from typing import NamedTuple

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.types import VALUE_RANGE


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
    mean(d(real)^2). An error that is equal in all frames costs nothing here; flicker does. error /
    energy is 0 for correct motion and 1 for a static clip; above 1, flicker outweighs the motion.
    Inputs are in [-1, 1] and are clamped to it. Raises `ValueError` for a single frame.
    """
    if real.shape[2] < 2:
        raise ValueError("one frame has no motion: give two or more")
    changes = [x.float().clamp(*VALUE_RANGE).diff(dim=2) for x in (recon, real)]
    squares = (changes[0] - changes[1]).square(), changes[1].square()
    return TemporalConsistency(*(reduce(x, "b ... -> b", "mean") for x in squares))

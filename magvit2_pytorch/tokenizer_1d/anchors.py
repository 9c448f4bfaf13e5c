"""Anchors: the place in a grid of patches that each token of a sequence begins with.

Tokens that begin alike have no path from pixels: they learn to differ late or never. Here each one
begins with the mean of the patches around its anchor. The first k anchors cover the grid evenly
for every k, so that the first tokens of a sequence are a coarser description of the whole.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.quasirandom import SobolEngine

Grid = tuple[int, int, int]
"""Patches along time, height and width."""

MAX_TOKENS = 4096
"""Most tokens of a sequence, or of one of its blocks."""
NUM_OCTAVES = 4
NUM_FEATURES = 2 * 3 * NUM_OCTAVES
SHARPNESS = 1.5
"""Distance between anchors, in units of the width of the mean around one."""


@lru_cache(maxsize=1)
def _sobol_points() -> Float[Tensor, "k 3"]:
    # The first point of the sequence is the corner.
    return SobolEngine(3).draw(MAX_TOKENS + 1, dtype=torch.float64)[1:]


def anchors(grid: Grid, count: int) -> Float[Tensor, "k 3"]:
    """Anchors of `count` tokens in units of patches, whose centres are at whole numbers.

    Those of fewer tokens are the first ones. Points of the unscrambled Sobol sequence: an eighth of
    the grid holds k / 8 of the first k, with an error below 1.5.
    """
    return _sobol_points()[:count] * torch.tensor(grid, dtype=torch.float64) - 0.5


def patch_centres(grid: Grid) -> Float[Tensor, "n 3"]:
    """Centres of the patches, by time, row and column."""
    return torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid))


def anchor_distances(grid: Grid, count: int, device: torch.device) -> Float[Tensor, "k n"]:
    """Squared distances of anchors to patches, in units of the width of a mean.

    The width is the distance between anchors divided by `SHARPNESS`.
    """
    spacing = (math.prod(grid) / count) ** (1 / 3)
    widths = torch.tensor([min(spacing, grid[0]), spacing, spacing], dtype=torch.float64)
    points, centres = (
        (positions * SHARPNESS / widths).to(device)
        for positions in (anchors(grid, count), patch_centres(grid))
    )
    return torch.cdist(points, centres).square()


def position_features(grid: Grid, num_frames: int) -> Float[Tensor, "n f"]:
    """Sines and cosines of the patches' centres, each axis from 0 to 1.

    `num_frames` is the length of the axis of time, in patches: a grid may be a part of it.
    """
    lengths = torch.tensor([num_frames, *grid[1:]], dtype=torch.float64)
    centres = (patch_centres(grid) + 0.5) / lengths
    octaves = torch.pi * 2.0 ** torch.arange(NUM_OCTAVES, dtype=torch.float64)
    angles = (centres[..., None] * octaves).flatten(1)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)

"""Patches of a video, anchors of tokens, and blocks of both.

An anchor is the place in the grid of patches that a token begins with. Tokens that begin alike have
no path from pixels: they learn to differ late or never. Here each one begins with the mean of the
patches around its anchor. The first k anchors cover the grid evenly for every k, so that the first
tokens of a sequence are a coarser description of the whole.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad
from torch.quasirandom import SobolEngine

from magvit2_pytorch.types import Video

MAX_POSITIONS = 2**14
"""Tokens and patches to compute at once, which bounds memory; a longer video is computed alone."""

Size = tuple[int, int, int]
"""Frames, height and width of a video in pixels."""
Patches = Float[Tensor, "b n p"]
"""Pixels of patches, by time, row and column."""


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
    """Anchors of `count` tokens; centres of patches are whole numbers.

    Those of fewer tokens are the first ones. Points of the unscrambled Sobol sequence: an eighth of
    the grid holds k / 8 of the first k, with an error below 1.5.
    """
    return _sobol_points()[:count] * torch.tensor(grid, dtype=torch.float64) - 0.5


def patch_centres(grid: Grid) -> Float[Tensor, "n 3"]:
    """Centres of the patches, by time, row and column."""
    return torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid))


def anchor_distances(grid: Grid, count: int, device: torch.device) -> Float[Tensor, "k n"]:
    """Squared distances of anchors to patches, in widths of a mean.

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
    """Sines and cosines of the patches' centres, from 0 to 1.

    `num_frames` is the length of the axis of time, in patches: a grid may be a part of it.
    """
    lengths = torch.tensor([num_frames, *grid[1:]], dtype=torch.float64)
    centres = (patch_centres(grid) + 0.5) / lengths
    octaves = torch.pi * 2.0 ** torch.arange(NUM_OCTAVES, dtype=torch.float64)
    angles = (centres[..., None] * octaves).flatten(1)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


@dataclass(frozen=True)
class Block:
    """Patches of a span of time, and the number of their tokens."""

    grid: Grid
    count: int
    start: int = 0
    """Patches along time before the block."""
    num_frames: int = 0
    """Patches along time of a whole block; the last one of a video may be shorter."""

    @property
    def num_patches(self) -> int:
        return math.prod(self.grid)

    @property
    def length(self) -> int:
        """Tokens and patches."""
        return self.count + self.num_patches

    def positions(self, anchored: bool) -> Float[Tensor, "m 3"]:
        """Positions of the tokens, then of the patches, in patches.

        A token is at its anchor; without anchors, token i is at (i, i, i), as in TiTok-Video, and
        patches are behind all tokens.
        """
        start = torch.tensor([self.start, 0, 0], dtype=torch.float64)
        centres = patch_centres(self.grid)
        if anchored:
            return torch.cat((anchors(self.grid, self.count), centres)) + start
        tokens = torch.arange(self.count, dtype=torch.float64)[:, None].expand(-1, 3)
        return torch.cat((tokens, centres + self.count)) + start


def patch_grid(size: Size, patch: Size) -> Grid:
    """Patches that cover a video along each axis."""
    return tuple(-(-length // side) for length, side in zip(size, patch, strict=True))


def to_patches(video: Video, patch: Size) -> Patches:
    """Patches of a video, padded by its last frame, row and column."""
    missing = [-length % side for length, side in zip(video.shape[2:], patch, strict=True)]
    if any(missing):
        time, below, right = missing
        video = pad(video, (0, right, 0, below, 0, time), mode="replicate")
    frames, height, width = patch
    return rearrange(
        video, "b c (j f) (y h) (x w) -> b (j y x) (f h w c)", f=frames, h=height, w=width
    )


def from_patches(patches: Patches, size: Size, patch: Size) -> Video:
    """Inverse of `to_patches`: the video without its padding."""
    (_, rows, columns), (frames, height, width) = patch_grid(size, patch), patch
    video = rearrange(
        patches,
        "b (j y x) (f h w c) -> b c (j f) (y h) (x w)",
        y=rows,
        x=columns,
        f=frames,
        h=height,
        w=width,
    )
    return video[:, :, : size[0], : size[1], : size[2]]


def group_packs(keys: Sequence[Hashable], lengths: Sequence[int]) -> Iterator[list[list[int]]]:
    """Packs of groups of numbers with equal keys, bounded by memory."""
    by_key: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        by_key.setdefault(key, []).append(number)
    pack: list[list[int]] = []
    length = 0
    for numbers in by_key.values():
        for number in numbers:
            if pack and length + lengths[number] > MAX_POSITIONS:
                yield pack
                pack, length = [], 0
            if pack and keys[pack[-1][0]] == keys[number]:
                pack[-1].append(number)
            else:
                pack.append([number])
            length += lengths[number]
    if pack:
        yield pack

"""Patches of a video, and the blocks of patches and tokens that a sequence consists of."""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from magvit2_pytorch.tokenizer_1d.anchors import Grid, anchors, patch_centres
from magvit2_pytorch.types import Video

MAX_POSITIONS = 2**14
"""Tokens and patches to compute at once, which bounds memory; a longer video is computed alone."""

Size = tuple[int, int, int]
"""Frames, height and width of a video in pixels."""
Patches = Float[Tensor, "b n p"]
"""Pixels of patches, by time, row and column."""


@dataclass(frozen=True)
class Block:
    """Patches of a span of time, and the number of tokens that describe them."""

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
    """Patches of a video; the last frame, row and column are repeated up to whole patches."""
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
    """Packs of groups of numbers with equal keys, each pack as long as memory allows."""
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

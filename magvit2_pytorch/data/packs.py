"""Packs: training batches of clips of several sizes and token numbers."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from magvit2_pytorch.data.loader import ResumableSampler
from magvit2_pytorch.data.workers import EndlessLoader
from magvit2_pytorch.runtime import keyed_seed
from magvit2_pytorch.types import Clips


class PackGroup(NamedTuple):
    """Clips of one size and number of tokens, which share attention calls."""

    clips: Float[Tensor, "b c t h w"]
    count: int
    """Tokens to encode to."""
    prefix: int
    """First tokens to decode from; fewer than `count`, or all."""


Pack = list[PackGroup]


@dataclass(frozen=True, kw_only=True)
class PackSpec:
    """Sizes and numbers of tokens of packs."""

    length: int
    """Patches and tokens of a pack: groups are added while they fit."""
    groups: int
    """Sizes that share a pack evenly. Fewer give larger calls, more give more variety."""
    patch: tuple[int, int, int]
    """Frames, height and width of a patch; sizes are multiples of it."""
    smallest: tuple[int, int, int]
    """Least frames, height and width of a clip."""
    largest: tuple[int, int, int]
    """Size of the clips to crop from."""
    num_tokens: tuple[int, int]
    prefix_dropout: float
    """Probability that a group is decoded from a part of its tokens."""

    def draw(self, rng: random.Random, easy: bool = False) -> list[tuple[tuple, int, int, int]]:
        """Size, tokens, prefix and number of clips of each group.

        Frames are uniform; area and number of tokens are log-uniform, up to a token for each
        patch; no side is over twice the other. An `easy` pack has the largest size, and a quarter
        of a token or more for each patch.
        """
        groups, left = [], self.length
        for remaining in range(self.groups, 0, -1):
            size = self.largest if easy else self._draw_size(rng)
            sides = zip(size, self.patch, strict=True)
            patches = math.prod(-(-side // patch) for side, patch in sides)
            high = min(self.num_tokens[1], patches)
            low = min(max(self.num_tokens[0], patches // 4 if easy else 1), high)
            count = _log_uniform(rng, low, high)
            prefix = count
            if rng.random() < self.prefix_dropout and not easy:
                prefix = _log_uniform(rng, min(self.num_tokens[0], count), count)
            clips = max(1, left // remaining // (patches + count))
            # Large clips are as likely as others: the first group is there even if it is too long.
            if clips * (patches + count) <= left or not groups:
                groups.append((size, count, prefix, clips))
                left -= clips * (patches + count)
        return groups

    def _draw_size(self, rng: random.Random) -> tuple[int, int, int]:
        times, rows, columns = (
            sorted({low, *range(-(-low // step) * step, high + 1, step)})
            for low, high, step in zip(self.smallest, self.largest, self.patch, strict=True)
        )
        smallest, largest = rows[0] * columns[0], rows[-1] * columns[-1]
        area = math.exp(rng.uniform(math.log(smallest), math.log(largest)))
        aspect = 2 ** rng.uniform(-1, 1)
        height = min(rows, key=lambda side: abs(side - math.sqrt(area * aspect)))
        widths = [side for side in columns if height <= 2 * side and side <= 2 * height]
        width = min(widths or columns, key=lambda side: abs(side - area / height))
        return rng.choice(times), height, width


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return min(high, round(math.exp(rng.uniform(math.log(low), math.log(high)))))


class PackedClips(Dataset):
    """Packs of random crops; pack n depends on seed and n only.

    Clips come in the order of `ResumableSampler`, of which a pack skips those that it has no room
    for. The first `num_easy` packs are easy, see `PackSpec.draw`.
    """

    def __init__(
        self,
        dataset: Clips,
        spec: PackSpec,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_easy: int = 0,
    ):
        self.dataset, self.spec, self.seed = dataset, spec, seed
        self.rank, self.num_easy = rank, num_easy
        patches = math.prod(-(-a // b) for a, b in zip(spec.smallest, spec.patch, strict=True))
        self.sampler = ResumableSampler(
            len(dataset),
            max(1, spec.length // (patches + min(spec.num_tokens[0], patches))),
            seed=seed,
            rank=rank,
            world_size=world_size,
        )

    def __getitem__(self, number: int) -> Pack:
        rng = random.Random(keyed_seed("pack", self.seed, number, self.rank))
        groups = self.spec.draw(rng, easy=number < self.num_easy)
        keys = iter(self.sampler.batch(number))
        takes_epoch = getattr(self.dataset, "takes_epoch", False)
        pack = []
        for size, count, prefix, num_clips in groups:
            clips = []
            for _ in range(num_clips):
                key = next(keys)
                clip = self.dataset[key if takes_epoch else key[1]]
                clip = clip[:, None] if clip.ndim == 3 else clip
                clips.append(_crop(clip, size, rng))
            pack.append(PackGroup(torch.stack(clips), count, prefix))
        return pack

    def batches(
        self, position: int, num_workers: int = 0, pin_memory: bool = False
    ) -> Iterator[Pack]:
        """Endless packs from number `position` on, for any number of workers."""
        numbers = range(position, 2**31)
        options = dict(batch_size=None, sampler=numbers, pin_memory=pin_memory)
        return iter(EndlessLoader(self, num_workers, self.seed, **options))


def _crop(
    clip: Float[Tensor, "c t h w"], size: tuple[int, int, int], rng: random.Random
) -> Float[Tensor, "c y u x"]:
    """A random part of a clip of this size."""
    if any(have < wanted for have, wanted in zip(clip.shape[1:], size, strict=True)):
        raise ValueError(
            f"a clip of {' x '.join(map(str, clip.shape[1:]))} is smaller than the training size "
            f"{' x '.join(map(str, size))}: give larger clips, or a smaller num_frames and "
            "image_size"
        )
    spare = (have - wanted for have, wanted in zip(clip.shape[1:], size, strict=True))
    start = [rng.randint(0, room) for room in spare]
    parts = (slice(at, at + side) for at, side in zip(start, size, strict=True))
    return clip[(slice(None), *parts)]

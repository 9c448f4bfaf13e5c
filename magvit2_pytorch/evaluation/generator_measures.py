"""Likelihood of held-out ends of videos, by a generator and others."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from magvit2_pytorch.codes.code_model import CodeModel, modeled_levels, split_digits
from magvit2_pytorch.codes.code_windows import Stretch, read_grid
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.codes.views import is_view
from magvit2_pytorch.generators.generator import Generator, State

ADDED_COUNTS = [10.0**exponent for exponent in range(-6, 3)]
"""Counts that are added to those of every code; the best is taken, which favours the unigram."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out end of a video."""

    name: str
    codes: Int[Tensor, "1 j y x *q"]
    """All codes of the video."""
    start: int
    """The first held-out latent frame."""
    size: tuple[int, int]
    """Height and width of the video in pixels."""

    @property
    def end(self) -> Int[Tensor, "j y x *q"]:
        """The held-out codes."""
        return self.codes[0, self.start :]


def held_out_videos(codes: CodesDataset, stretches: Sequence[Stretch]) -> Iterator[HeldOut]:
    """Held-out ends; of whole videos all but the first latent frame."""
    for stretch in stretches:
        entry, name = codes.header(stretch.video), codes.paths[stretch.video]
        grid = read_grid(codes, stretch.video, 0, stretch.stop)[None]
        yield HeldOut(name, grid, max(stretch.start, 1), (entry.height, entry.width))


def state_before(generator: Generator, video: HeldOut) -> State:
    """The generator's state before the held-out end."""
    codes = video.codes[:, : video.start].to(generator.device)
    return generator.read(codes, generator.begin(1, codes.shape[2:4]))


class Unigram:
    """Model of codes by their frequencies in the training part."""

    def __init__(self, codes: CodesDataset, stretches: Sequence[Stretch]):
        self.counts, self.size = Counter(), codes.codebook_size**codes.num_codebooks
        for stretch in stretches:
            if not is_view(codes.paths[stretch.video]):
                self.counts.update(_positions(read_grid(codes, *stretch)))

    def bits(self, codes: Int[Tensor, "j y x *q"], added: float) -> float:
        """Mean bits of codes, with `added` to the count of every code."""
        positions = _positions(codes)
        total = self.counts.total() + added * self.size
        counts = (self.counts[position] + added for position in positions)
        return sum(-math.log2(count / total) for count in counts) / len(positions)


def _positions(codes: Int[Tensor, "j y x *q"]) -> list:
    rows = codes.flatten(0, 2).tolist()
    return rows if codes.ndim == 3 else list(map(tuple, rows))


def adaptive_bits(video: HeldOut, levels: tuple[tuple[int, ...], ...]) -> float:
    """Mean bits of held-out codes in the adaptive entropy coder.

    It has coded those before and learns from the video alone: a bound to beat for a model that was
    trained on it.
    """
    model_levels = [modeled_levels(own) for own in levels]
    codes = video.codes[0].numpy().reshape(*video.codes.shape[1:4], len(levels))
    digits = np.concatenate(
        [split_digits(codes[..., book], own) for book, own in enumerate(model_levels)], axis=-1
    )
    frames = np.zeros(len(digits))

    def count(positions, digit, bit, probabilities):
        bits = (digits[(*positions, digit)] >> bit & 1).astype(bool)
        frames[positions[0]] -= np.log2(np.where(bits, probabilities, 1 - probabilities)).sum()
        return bits

    CodeModel(model_levels).visit(digits.shape[:3], count)
    return float(frames[video.start :].sum() / math.prod(video.end.shape[:3]))


@torch.no_grad()
def nearest_shares(
    frames: Sequence[Int[Tensor, "..."]], codes: CodesDataset, stretches: Sequence[Stretch]
) -> list[float]:
    """Largest share of codes equal to those of a training frame.

    Frames are `y x *q` and compared with those of their size. Samples that share far more than
    held-out frames do were learnt by heart.
    """
    best = [0.0] * len(frames)
    for stretch in stretches:
        grid = read_grid(codes, *stretch)
        for number, frame in enumerate(frames):
            if grid.shape[1:] == frame.shape:
                share = float((grid == frame).flatten(1).float().mean(dim=1).max())
                best[number] = max(best[number], share)
    return best

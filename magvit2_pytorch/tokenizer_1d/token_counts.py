"""Numbers of tokens: asked for, found by quality, or divided among videos."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from magvit2_pytorch.tokenizer_1d.patches import MAX_TOKENS
from magvit2_pytorch.types import VALUE_RANGE

NumTokens = int | str | Sequence[int] | None
"""Tokens of a video, or of each block: a number, one number for each video, a text such as
"psnr:28", "mse:0.003" or "share:0.1" (see `parse_target`), or None for the configured number."""


class Target(NamedTuple):
    """A request for tokens by quality, or by share of patches."""

    name: str
    value: float

    @property
    def max_error(self) -> float:
        """Largest mean squared error in [-1, 1] that meets a quality."""
        if self.name == "mse":
            return self.value
        low, high = VALUE_RANGE
        return (high - low) ** 2 / 10 ** (self.value / 10)


def parse_target(text: str) -> Target:
    """Request of the form "psnr:28" (dB), "mse:0.003" or "share:0.1" (tokens per patch).

    Raises `ValueError` if it has another form.
    """
    name, _, number = text.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if name not in ("psnr", "mse", "share") or not 0 < value < math.inf:
        raise ValueError(
            f"num_tokens is {text!r}: give a number, or 'psnr:28', 'mse:0.003' or 'share:0.1'"
        )
    return Target(name, value)


def check_count(count: int) -> int:
    """A number of tokens; `ValueError` if it is out of range."""
    if not isinstance(count, int) or not 1 <= count <= MAX_TOKENS:
        raise ValueError(f"num_tokens is {count!r}: give 1 to {MAX_TOKENS}")
    return count


def count_steps(low: int, high: int) -> list[int]:
    """Numbers of tokens to try, each about sqrt(2) times the last."""
    low = min(low, high)
    num_steps = math.ceil(2 * math.log2(high / low))
    return sorted({min(high, round(low * 2 ** (step / 2))) for step in range(num_steps + 1)})


def smallest_counts(
    candidates: Sequence[Sequence[int]],
    errors: Callable[[list[int]], list[float]],
    max_error: float | int,
) -> list[int]:
    """Fewest tokens of each video with a small enough error.

    `candidates` are the numbers to choose from, rising; `errors` measures all videos, each at a
    given number. The next fewer number of a result was measured, and does not do; where no number
    does, the result is the largest. A larger `max_error` never gives more tokens.
    """
    low, high = [0] * len(candidates), [len(counts) - 1 for counts in candidates]
    while any(start < stop for start, stop in zip(low, high, strict=True)):
        middle = [(start + stop) // 2 for start, stop in zip(low, high, strict=True)]
        measured = errors([counts[i] for counts, i in zip(candidates, middle, strict=True)])
        for number, error in enumerate(measured):
            if low[number] == high[number]:
                continue
            if error <= max_error:
                high[number] = middle[number]
            else:
                low[number] = middle[number] + 1
    return [counts[i] for counts, i in zip(candidates, low, strict=True)]


def divide_tokens(
    candidates: Sequence[Sequence[int]], errors: Sequence[Sequence[float | int]], total: int
) -> list[int]:
    """Tokens of each video, `total` in all, for a small error.

    `errors` has the error of each video with each number of `candidates`. Starting with the
    fewest, the step that lowers the error most for each token is taken as long as one fits: the
    errors then fall equally steeply everywhere. Raises `ValueError` if the fewest do not fit.
    """
    chosen = [0] * len(candidates)
    left = total - sum(counts[0] for counts in candidates)
    if left < 0:
        raise ValueError(
            f"total is {total}, but {len(candidates)} videos need {total - left} tokens at least"
        )
    while True:
        steps = [
            ((errors[video][at] - errors[video][to]) / (counts[to] - counts[at]), -video, to)
            for video, (counts, at) in enumerate(zip(candidates, chosen, strict=True))
            for to in range(at + 1, len(counts))
            if counts[to] - counts[at] <= left and errors[video][to] < errors[video][at]
        ]
        if not steps:
            return [counts[at] for counts, at in zip(candidates, chosen, strict=True)]
        _, video, to = max(steps)
        counts = candidates[-video]
        left -= counts[to] - counts[chosen[-video]]
        chosen[-video] = to


@dataclass(frozen=True)
class Prefixes:
    """Videos, their codes, and lengths of prefixes to choose from."""

    videos: Sequence[Tensor]
    """Of any sizes, `c t h w`."""
    codes: Sequence[Tensor]
    candidates: Sequence[Sequence[int]]
    decode: Callable[[list[Tensor], list[tuple[int, ...]]], list[Tensor]]
    """Decodes codes to videos of these sizes."""

    def errors(self, counts: list[int]) -> list[float]:
        """Mean squared error of each video, decoded from its first `counts` codes."""
        prefixes = [codes[:count] for codes, count in zip(self.codes, counts, strict=True)]
        decoded = self.decode(prefixes, [tuple(video.shape[1:]) for video in self.videos])
        return [
            float((recon.clamp(*VALUE_RANGE).double() - video.double()).square().mean())
            for recon, video in zip(decoded, self.videos, strict=True)
        ]

    def shortest(self, max_error: float) -> list[Tensor]:
        """The fewest codes of each video with this error, or all."""
        counts = smallest_counts(self.candidates, self.errors, max_error)
        return [codes[:count] for codes, count in zip(self.codes, counts, strict=True)]

    def divide(self, total: int) -> list[int]:
        """Numbers of tokens with a small squared error of all pixels."""
        steps = range(max(map(len, self.candidates)))
        errors = [
            self.errors([counts[min(step, len(counts) - 1)] for counts in self.candidates])
            for step in steps
        ]
        sums = [
            [errors[step][number] * video.numel() for step in range(len(counts))]
            for number, (video, counts) in enumerate(zip(self.videos, self.candidates, strict=True))
        ]
        return divide_tokens(self.candidates, sums, total)

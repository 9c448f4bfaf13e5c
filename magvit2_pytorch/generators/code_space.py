"""Codes as digits, so that no table has a row per code."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from magvit2_pytorch.quantizers.quantizer import Quantizer

MAX_SUB_TOKEN = 2**14
"""Largest number of values of a sub-token: each has a row in the head's last map."""


class Part(NamedTuple):
    """A part of a code: digits that are drawn together."""

    codebook: int
    place: int
    """Product of the levels before it."""
    size: int
    """Number of its values."""


@dataclass(frozen=True)
class CodeSpace:
    """Digits and sub-tokens of codes, of all codebooks or residual levels.

    A digit is a level of FSQ or a bit of LFQ. Embeddings have a row for each value of each digit.
    A sub-token is several digits that a generator draws at once: as many as have a product of at
    most `group` values. Small groups learn from little data; large ones take fewer steps to sample.
    """

    levels: tuple[tuple[int, ...], ...]
    """Number of values of each digit, least significant first, for each codebook."""
    group: int = 8

    def __post_init__(self):
        if not self.levels or any(not digits or min(digits) < 2 for digits in self.levels):
            raise ValueError(
                f"levels {self.levels}: give at least one digit of 2 or more values per codebook"
            )
        for digits in self.levels:
            if math.prod(digits) > 2**63:
                raise ValueError(f"levels {digits}: their product must fit 63 bits")
        largest = max(part.size for part in self.sub_tokens)
        if largest > MAX_SUB_TOKEN:
            raise ValueError(
                f"a sub-token has {largest:,} values, at most {MAX_SUB_TOKEN:,} are allowed: use a "
                "smaller group, or a tokenizer with FSQ or LFQ, whose codes have digits"
            )

    @classmethod
    def of(cls, quantizer: Quantizer, group: int = 8) -> "CodeSpace":
        """The space of a quantizer's codes; `ValueError` if its latents are continuous."""
        if quantizer.digit_levels is None:
            raise ValueError("this tokenizer is continuous: generators need codes")
        return cls((quantizer.digit_levels,) * quantizer.num_codebooks, group)

    @property
    def num_codebooks(self) -> int:
        return len(self.levels)

    @cached_property
    def digits(self) -> tuple[Part, ...]:
        """Digits of all codebooks."""
        return tuple(
            Part(number, math.prod(levels[:index]), level)
            for number, levels in enumerate(self.levels)
            for index, level in enumerate(levels)
        )

    @cached_property
    def sub_tokens(self) -> tuple[Part, ...]:
        """Sub-tokens of all codebooks, in the order in which they are drawn."""
        parts: list[Part] = []
        for digit in self.digits:
            last = parts[-1] if parts else None
            if last and last.codebook == digit.codebook and last.size * digit.size <= self.group:
                parts[-1] = last._replace(size=last.size * digit.size)
            else:
                parts.append(digit)
        return tuple(parts)

    @property
    def bits(self) -> float:
        """Bits of a position's codes if all are equally likely."""
        return sum(math.log2(part.size) for part in self.digits)

    @property
    def num_features(self) -> int:
        """Length of `one_hot`: each digit's values, and one for unknown."""
        return sum(part.size + 1 for part in self.digits)

    def to_digits(self, codes: Int[Tensor, "..."]) -> Int[Tensor, "... d"]:
        """Digits of codes; several codebooks are the last axis of the codes."""
        return _split(self._with_codebooks(codes), self.digits)

    def to_sub_tokens(self, codes: Int[Tensor, "..."]) -> Int[Tensor, "... g"]:
        """Sub-tokens of codes."""
        return _split(self._with_codebooks(codes), self.sub_tokens)

    def from_digits(self, digits: Int[Tensor, "... d"]) -> Int[Tensor, "..."]:
        """Inverse of `to_digits`."""
        return self._join(digits, self.digits)

    def from_sub_tokens(self, sub_tokens: Int[Tensor, "... g"]) -> Int[Tensor, "..."]:
        """Inverse of `to_sub_tokens`."""
        return self._join(sub_tokens, self.sub_tokens)

    def unknown(self, *shape: int, device: torch.device | None = None) -> Int[Tensor, "... d"]:
        """Digits of positions whose code is not known."""
        return torch.tensor([part.size for part in self.digits], device=device).expand(*shape, -1)

    def hide(self, digits: Int[Tensor, "*n d"], known: Bool[Tensor, "*n"]) -> Int[Tensor, "*n d"]:
        """Digits, with unknown ones at positions that are not `known`."""
        return torch.where(known[..., None], digits, self.unknown(device=digits.device))

    def one_hot(self, digits: Int[Tensor, "... d"], dtype: torch.dtype) -> Float[Tensor, "... f"]:
        """One 1 for each digit, of `num_features` values."""
        starts, start = [], 0
        for part in self.digits:
            starts.append(start)
            start += part.size + 1
        features = torch.zeros(*digits.shape[:-1], start, dtype=dtype, device=digits.device)
        return features.scatter_(-1, digits + torch.tensor(starts, device=digits.device), 1)

    def neighbours_of(self, digits: Int[Tensor, "... d"], moves: Tensor) -> Int[Tensor, "... d"]:
        """Digits moved by -1, 0 or 1 level, like small errors."""
        sizes = torch.tensor([part.size for part in self.digits], device=digits.device)
        moved = (digits + moves).clamp(min=0)
        return torch.where(digits < sizes, torch.minimum(moved, sizes - 1), digits)

    def corrupted(
        self, codes: Int[Tensor, "b ..."], share: Tensor | float, draws: torch.Generator
    ) -> Int[Tensor, "b ..."]:
        """Codes with a random share of their digits off by one level.

        `share` is a number, or one for each batch entry.
        """
        digits = self.to_digits(codes)
        moves = torch.randint(0, 2, digits.shape, generator=draws) * 2 - 1
        share = torch.as_tensor(share).reshape(-1, *(1,) * (digits.ndim - 1))
        moves *= torch.rand(digits.shape, generator=draws) < share
        return self.from_digits(self.neighbours_of(digits, moves.to(digits)))

    def check(self, codes: Tensor) -> Int[Tensor, "b j y x *q"]:
        """Codes as int64; `ValueError` unless they fit this space."""
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"codes are {codes.dtype}: give integers, as tokenize does")
        axes = "b j y x" if self.num_codebooks == 1 else f"b j y x {self.num_codebooks}"
        wrong_last = self.num_codebooks > 1 and codes.shape[-1] != self.num_codebooks
        if codes.ndim != len(axes.split()) or wrong_last:
            raise ValueError(f"codes have shape {tuple(codes.shape)}: give {axes}")
        codes = codes.long()
        if codes.numel():
            for number, (own, levels) in enumerate(
                zip(self._with_codebooks(codes).unbind(-1), self.levels, strict=True)
            ):
                low, high = int(own.min()), int(own.max())
                if low < 0 or high >= math.prod(levels):
                    raise ValueError(
                        f"codes of codebook {number} range from {low} to {high}, but it has "
                        f"{math.prod(levels)} entries: are they from another tokenizer?"
                    )
        return codes

    def _with_codebooks(self, codes: Tensor) -> Tensor:
        return codes[..., None] if self.num_codebooks == 1 else codes

    def _join(self, values: Tensor, parts: tuple[Part, ...]) -> Tensor:
        codes = values.new_zeros(*values.shape[:-1], self.num_codebooks)
        for number, part in enumerate(parts):
            codes[..., part.codebook] += values[..., number] * part.place
        return codes[..., 0] if self.num_codebooks == 1 else codes


def _split(codes: Int[Tensor, "... q"], parts: tuple[Part, ...]) -> Int[Tensor, "... p"]:
    codebooks = torch.tensor([part.codebook for part in parts], device=codes.device)
    places, sizes = (
        torch.tensor([getattr(part, name) for part in parts], device=codes.device)
        for name in ("place", "size")
    )
    return codes[..., codebooks] // places % sizes

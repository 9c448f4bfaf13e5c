"""Adaptive probabilities of the bits of codes, for entropy coding."""

from collections.abc import Callable, Sequence
from decimal import Context, Decimal, localcontext
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

PROBABILITY_UNIT = 2**-16
MIN_PROBABILITY = 2**-11
"""Of a bit value, so that the most improbable bit costs 11 bits."""
MAX_LOGIT = 8
LOGIT_UNIT = 2**-8
WEIGHT_UNIT = 2**-16
GRADIENT_UNIT = 2**-12
VALUE_UNIT = 2**-8
NUM_LOGITS = 2**12
"""Number of entries in the table of logits."""

NUM_SLOTS = 2**20
"""Counters per kind of context; contexts with the same slot share its counter."""
MAX_COUNT = 255
"""Above this sum, both counts are halved, so that a counter adapts to changes in the video."""
PRIOR_COUNT = 3 / 8

LEARNING_RATE = 3 / 64
INITIAL_WEIGHT = 1 / 4
"""Initial weight of each counter."""
INITIAL_SQUARES = 1 / 16

CAUSAL_NEIGHBOURS = ((0, -1), (-1, 0), (-1, 1))
"""Offsets (row, column) of known neighbours: left, above, above right."""
HASHED_NEIGHBOURS = (0, 1, 3)
"""Neighbours whose whole code is a context: left, above, and the previous frame."""
NUM_CONTEXTS = 3 + len(HASHED_NEIGHBOURS)

Bits = Bool[np.ndarray, " n"]
Probabilities = Float[np.ndarray, " n"]
"""Probabilities of a 1, multiples of 2^-16."""
Positions = tuple[int, Int[np.ndarray, " n"], Int[np.ndarray, " n"]]
"""A frame index, and rows and columns in the frame."""


class BitModel:
    """Logistic regression on neighbouring values and context counters.

    The probability that a bit is 1 is the logistic function of a weighted sum of `num_values`
    values (the digits of neighbours) and of the logits of `NUM_CONTEXTS` counters, each of which
    counts how often the bit was 1 in the same context. Each kind of bit has its own weights. Every
    bit updates them with one AdaGrad step on its code length, as in the PAQ family of compressors.

    Encoder and decoder must agree to the last bit, on any two machines. All numbers are therefore
    multiples of powers of two, so small that sums are exact in any order; the only operations that
    round, division and square root, are exactly specified by IEEE 754; and the tables of logarithms
    are computed in decimals.
    """

    def __init__(self, num_nodes: int, num_values: int):
        self.num_values = num_values
        shape = (num_nodes, num_values + NUM_CONTEXTS)
        self.weights = np.zeros(shape)
        self.weights[:, num_values:] = INITIAL_WEIGHT
        self.squares = np.full(shape, INITIAL_SQUARES)
        self.counts = np.zeros((2, NUM_CONTEXTS, NUM_SLOTS), dtype=np.uint16)
        self.kinds = np.arange(NUM_CONTEXTS)[:, None]

    def predict(
        self,
        nodes: Int[np.ndarray, " n"],
        values: Float[np.ndarray, "n v"],
        contexts: UInt64[np.ndarray, "k n"],
    ) -> Probabilities:
        """Probability of a 1 for bits `nodes`; `update` must follow."""
        slots = _hash(contexts, nodes) >> np.uint64(64 - NUM_SLOTS.bit_length() + 1)
        self._slots, self._nodes = slots.astype(np.int64), nodes
        zeros, ones = self.counts[:, self.kinds, self._slots].astype(np.float64)
        frequencies = (ones + PRIOR_COUNT) / (zeros + ones + 2 * PRIOR_COUNT)
        logits = _logits()[(frequencies * NUM_LOGITS).astype(np.int64)]
        self._inputs = np.concatenate((values, logits.T), axis=1)
        total = (self.weights[nodes] * self._inputs).sum(axis=1)
        indices = (total.clip(-MAX_LOGIT, MAX_LOGIT) + MAX_LOGIT) / LOGIT_UNIT
        self._probabilities = _probabilities()[indices.astype(np.int64)]
        return self._probabilities

    def update(self, bits: Bits) -> None:
        """Updates the model with the values of the bits just predicted."""
        error = bits - self._probabilities
        gradient = np.rint(error[:, None] * self._inputs / GRADIENT_UNIT) * GRADIENT_UNIT
        np.add.at(self.squares, self._nodes, gradient * gradient)
        step = LEARNING_RATE * gradient / np.sqrt(self.squares[self._nodes])
        np.add.at(self.weights, self._nodes, np.rint(step / WEIGHT_UNIT) * WEIGHT_UNIT)
        np.add.at(self.counts, (bits.astype(np.int64), self.kinds, self._slots), 1)
        counts = self.counts[:, self.kinds, self._slots]
        is_full = counts.astype(np.int64).sum(axis=0) > MAX_COUNT
        self.counts[:, self.kinds, self._slots] = np.where(is_full, counts // 2, counts)


class CodeModel:
    """Visits every bit of a video's codes in a fixed order.

    Encoder and decoder use the same order. `levels` contains, for each codebook, the number of
    values of each digit of its codes.

    Frames are visited in order. Within a frame, all positions with equal x + 2 y are visited
    together: their neighbours to the left, above and above right are known by then. Digits of a
    position follow each other, each from its highest bit down. The probability of a bit depends on
    these neighbours, on the same position in the previous frame, and on the known bits of its own
    position.
    """

    def __init__(self, levels: Sequence[Sequence[int]]):
        self.levels = [level for book in levels for level in book]
        self.book_of = [book for book, its_levels in enumerate(levels) for _ in its_levels]
        self.num_codebooks = len(levels)
        kinds = [2 ** num_bits(level) for level in self.levels]
        self.first_nodes = np.cumsum([0, *kinds[:-1]])
        self.bits = BitModel(sum(kinds), len(self.levels) * (len(CAUSAL_NEIGHBOURS) + 2) + 1)

    def visit(
        self,
        grid: tuple[int, int, int],
        code_bits: Callable[[Positions, int, int, Probabilities], Bits],
    ) -> Int[np.ndarray, "j y x d"]:
        """Returns the digits of all codebooks, least significant first; once per model.

        `code_bits` gets positions, a digit, the index of the bit in it, and the probability of a 1
        at each position, and returns the bits: an encoder writes them, a decoder reads them.
        """
        num_frames, height, width = grid
        order = np.add.outer(2 * np.arange(height), np.arange(width))
        waves = [np.nonzero(order == wave) for wave in np.unique(order)]
        digits = np.zeros((*grid, len(self.levels)), dtype=np.int64)
        previous = _PartialFrame(height, width, len(self.levels), self.num_codebooks)
        for frame in range(num_frames):
            current = _PartialFrame(height, width, len(self.levels), self.num_codebooks)
            for rows, columns in waves:
                positions = (frame, rows, columns)
                neighbours = [
                    current.at(rows + down, columns + right) for down, right in CAUSAL_NEIGHBOURS
                ]
                neighbours.append(previous.at(rows, columns))
                current.set(rows, columns, self._visit_wave(positions, neighbours, code_bits))
                digits[frame, rows, columns] = current.at(rows, columns).digits - 1
            previous = current
        return digits

    def _visit_wave(
        self,
        positions: Positions,
        neighbours: list["_KnownCodes"],
        code_bits: Callable[[Positions, int, int, Probabilities], Bits],
    ) -> "_KnownCodes":
        """Codes one wavefront of positions, given their decoded neighbours."""
        count, num_digits = len(positions[1]), len(self.levels)
        digits = np.zeros((count, num_digits), dtype=np.int64)
        hashes = np.zeros((count, self.num_codebooks), dtype=np.uint64)
        own, bias = np.zeros((count, num_digits)), np.ones((count, 1))
        values = np.concatenate([*(known.values for known in neighbours), own, bias], axis=1)
        for digit, (book, level) in enumerate(zip(self.book_of, self.levels, strict=True)):
            prefix = hashes[:, book]
            contexts = np.stack(
                [
                    np.zeros_like(prefix),
                    prefix,
                    _hash(*(known.digits[:, digit] for known in neighbours)),
                ]
                + [_hash(prefix, neighbours[i].hashes[:, book]) for i in HASHED_NEIGHBOURS]
            )
            node = np.ones(count, dtype=np.int64)
            for bit in reversed(range(num_bits(level))):
                probabilities = self.bits.predict(self.first_nodes[digit] + node, values, contexts)
                bits = code_bits(positions, digit, bit, probabilities)
                self.bits.update(bits)
                node = node * 2 + bits
            digits[:, digit] = node - 2 ** num_bits(level)
            values[:, digit - 1 - num_digits] = self._values(digits)[:, digit]
            hashes[:, book] = _hash(prefix, digits[:, digit] + 1)
        return _KnownCodes(digits + 1, self._values(digits), hashes)

    def _values(self, digits: Int[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Digits as values in [-1, 1], close to the quantized latents."""
        values = 2 * digits / (np.array(self.levels) - 1) - 1
        return np.rint(values / VALUE_UNIT) * VALUE_UNIT


class _KnownCodes(NamedTuple):
    """Digits, values and hashes of codes; zero where unknown."""

    digits: Int[np.ndarray, "n d"]
    """Digits plus one."""
    values: Float[np.ndarray, "n d"]
    hashes: UInt64[np.ndarray, "n q"]


class _PartialFrame:
    """The known codes of a frame, with a border of unknown ones."""

    def __init__(self, height: int, width: int, num_digits: int, num_codebooks: int):
        shape = (height + 1, width + 2)
        self.known = _KnownCodes(
            np.zeros((*shape, num_digits), dtype=np.int64),
            np.zeros((*shape, num_digits)),
            np.zeros((*shape, num_codebooks), dtype=np.uint64),
        )

    def at(self, rows: Int[np.ndarray, " n"], columns: Int[np.ndarray, " n"]) -> _KnownCodes:
        return _KnownCodes(*(array[rows + 1, columns + 1] for array in self.known))

    def set(
        self, rows: Int[np.ndarray, " n"], columns: Int[np.ndarray, " n"], known: _KnownCodes
    ) -> None:
        for array, new in zip(self.known, known, strict=True):
            array[rows + 1, columns + 1] = new


def num_bits(level: int) -> int:
    """Number of bits for `level` values."""
    return (level - 1).bit_length()


def modeled_levels(levels: tuple[int, ...]) -> tuple[int, ...]:
    """Levels of the modeled digits of a code, least significant first."""
    # A code without digits (of a vector quantizer) has bits: its neighbours mean nothing.
    return levels if len(levels) > 1 else (2,) * num_bits(*levels)


def place_values(levels: tuple[int, ...]) -> Int[np.ndarray, " d"]:
    """Value of a one in each digit."""
    return np.cumprod([1, *levels[:-1]], dtype=np.int64)


def split_digits(codes: Int[np.ndarray, "*n"], levels: tuple[int, ...]) -> Int[np.ndarray, "*n d"]:
    """Digits of codes, least significant first."""
    return codes[..., None] // place_values(levels) % np.array(levels)


def _hash(*words: np.ndarray) -> UInt64[np.ndarray, "..."]:
    """A 64-bit hash of several integers."""
    value = np.uint64(0)
    for word in words:
        value = (value ^ word.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        value = value ^ (value >> np.uint64(29))
    return value


@cache
def _logits() -> Float[np.ndarray, " steps"]:
    """Table of log(p / (1 - p)) at interval midpoints of p."""
    with localcontext(Context(prec=28)):
        odds = [Decimal(2 * step + 1) / (2 * (NUM_LOGITS - step) - 1) for step in range(NUM_LOGITS)]
        return np.array([round(odd.ln() / Decimal(LOGIT_UNIT)) for odd in odds]) * LOGIT_UNIT


@cache
def _probabilities() -> Float[np.ndarray, " logits"]:
    """Table of 1 / (1 + exp(-x)) from x = -MAX_LOGIT."""
    with localcontext(Context(prec=28)):
        steps = range(round(2 * MAX_LOGIT / LOGIT_UNIT) + 1)
        powers = [(MAX_LOGIT - step * Decimal(LOGIT_UNIT)).exp() for step in steps]
        rounded = [round(1 / (1 + power) / Decimal(PROBABILITY_UNIT)) for power in powers]
    return (np.array(rounded) * PROBABILITY_UNIT).clip(MIN_PROBABILITY, 1 - MIN_PROBABILITY)

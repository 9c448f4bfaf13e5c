"""How likely each bit of each code is, learned from the codes before it."""

from collections.abc import Callable, Sequence
from decimal import Context, Decimal, localcontext
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

PROBABILITY_UNIT = 2**-16
MIN_PROBABILITY = 2**-11
"""Of either bit, so that the worst surprise costs 11 bits."""
MAX_LOGIT = 8
LOGIT_UNIT = 2**-8
WEIGHT_UNIT = 2**-16
GRADIENT_UNIT = 2**-12
VALUE_UNIT = 2**-8
NUM_LOGITS = 2**12
"""Entries in the table of logits."""

NUM_SLOTS = 2**20
"""Counters of one kind of context; contexts that meet in a slot share it."""
MAX_COUNT = 255
"""Then both counts are halved, so that a context follows a video that changes."""
PRIOR_COUNT = 3 / 8

LEARNING_RATE = 3 / 64
INITIAL_WEIGHT = 1 / 4
"""Of each counter's opinion, before any was heard."""
INITIAL_SQUARES = 1 / 16

CAUSAL_NEIGHBOURS = ((0, -1), (-1, 0), (-1, 1))
"""Neighbours in the frame that are known already: to the left, above, above to the right."""
HASHED_NEIGHBOURS = (0, 1, 3)
"""Those whose whole code is a context: to the left, above, and one frame before."""
NUM_CONTEXTS = 3 + len(HASHED_NEIGHBOURS)

Bits = Bool[np.ndarray, " n"]
Probabilities = Float[np.ndarray, " n"]
"""Probabilities of a 1, multiples of 2^-16."""
Positions = tuple[int, Int[np.ndarray, " n"], Int[np.ndarray, " n"]]
"""A frame, and rows and columns in it."""


class BitModel:
    """Logistic regression on values and on counters, a set of weights to each kind of bit.

    The chance that a bit is 1 is the logistic function of a weighted sum of `num_values` values
    near its own (the digits of neighbours) and of the logits of `NUM_CONTEXTS` counters, each of
    which knows how often the bit was 1 in the same context. Weights learn by one AdaGrad step on
    the code length of every bit: logistic mixing, as in the PAQ family of compressors.

    Reader and writer must agree to the last bit, on any two machines. All numbers are therefore
    multiples of powers of two, so small that sums are exact in whatever order; the only operations
    that round, a quotient and a root, are rounded by IEEE 754 in one way; and the tables of
    logarithms are made in decimals.
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
        """The chance of a 1 for bits of the kinds `nodes`; `update` has to come next."""
        slots = _hash(contexts, nodes) >> np.uint64(64 - NUM_SLOTS.bit_length() + 1)
        self._slots, self._nodes = slots.astype(np.int64), nodes
        zeros, ones = self.counts[:, self.kinds, self._slots].astype(np.float64)
        shares = (ones + PRIOR_COUNT) / (zeros + ones + 2 * PRIOR_COUNT)
        logits = _logits()[(shares * NUM_LOGITS).astype(np.int64)]
        self._inputs = np.concatenate((values, logits.T), axis=1)
        total = (self.weights[nodes] * self._inputs).sum(axis=1)
        places = (total.clip(-MAX_LOGIT, MAX_LOGIT) + MAX_LOGIT) / LOGIT_UNIT
        self._probabilities = _probabilities()[places.astype(np.int64)]
        return self._probabilities

    def update(self, bits: Bits) -> None:
        """Learns what the bits just predicted turned out to be."""
        error = bits - self._probabilities
        gradient = np.rint(error[:, None] * self._inputs / GRADIENT_UNIT) * GRADIENT_UNIT
        np.add.at(self.squares, self._nodes, gradient * gradient)
        step = LEARNING_RATE * gradient / np.sqrt(self.squares[self._nodes])
        np.add.at(self.weights, self._nodes, np.rint(step / WEIGHT_UNIT) * WEIGHT_UNIT)
        np.add.at(self.counts, (bits.astype(np.int64), self.kinds, self._slots), 1)
        counts = self.counts[:, self.kinds, self._slots]
        many = counts.astype(np.int64).sum(axis=0) > MAX_COUNT
        self.counts[:, self.kinds, self._slots] = np.where(many, counts // 2, counts)


class CodeModel:
    """Visits every bit of a video's codes once, in an order that reader and writer share.

    `levels` has, for each codebook, how many values each digit of its codes can have.

    Frames come in order. Within one, all positions with equal x + 2 y go together: whatever is to
    the left, above or above to the right of them is known by then. At a position digit comes after
    digit, each from its highest bit down. A bit is expected in the light of these neighbours, of
    the same position one frame before, and of what is known of its own position.
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
        exchange: Callable[[Positions, int, int, Probabilities], Bits],
    ) -> Int[np.ndarray, "j y x d"]:
        """The digits of all codebooks, least significant first; a model visits one video.

        `exchange` is told the positions, the digit, the place of the bit in it, and how likely a 1
        is at each position, and says what the bits are: a writer knows, a reader finds out.
        """
        num_frames, height, width = grid
        order = np.add.outer(2 * np.arange(height), np.arange(width))
        waves = [np.nonzero(order == wave) for wave in np.unique(order)]
        digits = np.zeros((*grid, len(self.levels)), dtype=np.int64)
        before = _PartialFrame(height, width, len(self.levels), self.num_codebooks)
        for frame in range(num_frames):
            now = _PartialFrame(height, width, len(self.levels), self.num_codebooks)
            for rows, columns in waves:
                positions = (frame, rows, columns)
                near = [now.at(rows + down, columns + right) for down, right in CAUSAL_NEIGHBOURS]
                near.append(before.at(rows, columns))
                now.set(rows, columns, self._visit_wave(positions, near, exchange))
                digits[frame, rows, columns] = now.at(rows, columns).digits - 1
            before = now
        return digits

    def _visit_wave(
        self,
        positions: Positions,
        near: list["_KnownCodes"],
        exchange: Callable[[Positions, int, int, Probabilities], Bits],
    ) -> "_KnownCodes":
        """What `exchange` lets be known of some positions, in the light of those near them."""
        count, num_digits = len(positions[1]), len(self.levels)
        digits = np.zeros((count, num_digits), dtype=np.int64)
        names = np.zeros((count, self.num_codebooks), dtype=np.uint64)
        own, bias = np.zeros((count, num_digits)), np.ones((count, 1))
        values = np.concatenate([*(known.values for known in near), own, bias], axis=1)
        for digit, (book, level) in enumerate(zip(self.book_of, self.levels, strict=True)):
            name = names[:, book]
            contexts = np.stack(
                [np.zeros_like(name), name, _hash(*(known.digits[:, digit] for known in near))]
                + [_hash(name, near[i].names[:, book]) for i in HASHED_NEIGHBOURS]
            )
            node = np.ones(count, dtype=np.int64)
            for place in reversed(range(num_bits(level))):
                probabilities = self.bits.predict(self.first_nodes[digit] + node, values, contexts)
                bits = exchange(positions, digit, place, probabilities)
                self.bits.update(bits)
                node = node * 2 + bits
            digits[:, digit] = node - 2 ** num_bits(level)
            values[:, digit - 1 - num_digits] = self._values(digits)[:, digit]
            names[:, book] = _hash(name, digits[:, digit] + 1)
        return _KnownCodes(digits + 1, self._values(digits), names)

    def _values(self, digits: Int[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Digits as numbers in [-1, 1]: about the quantized latents that they stand for."""
        values = 2 * digits / (np.array(self.levels) - 1) - 1
        return np.rint(values / VALUE_UNIT) * VALUE_UNIT


class _KnownCodes(NamedTuple):
    """What is known of some positions; zeros where nothing is."""

    digits: Int[np.ndarray, "n d"]
    """One more than they are."""
    values: Float[np.ndarray, "n d"]
    names: UInt64[np.ndarray, "n q"]


class _PartialFrame:
    """Codes of a frame as they become known, with a border of the unknown."""

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
    """Bits that tell `level` values apart."""
    return (level - 1).bit_length()


def _hash(*words: np.ndarray) -> UInt64[np.ndarray, "..."]:
    """One number for several integers, always the same, and for others most likely another."""
    mixed = np.uint64(0)
    for word in words:
        mixed = (mixed ^ word.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = mixed ^ (mixed >> np.uint64(29))
    return mixed


@cache
def _logits() -> Float[np.ndarray, " steps"]:
    """log(p / (1 - p)) in the middle of each step of p, rounded."""
    with localcontext(Context(prec=28)):
        odds = [Decimal(2 * step + 1) / (2 * (NUM_LOGITS - step) - 1) for step in range(NUM_LOGITS)]
        return np.array([round(odd.ln() / Decimal(LOGIT_UNIT)) for odd in odds]) * LOGIT_UNIT


@cache
def _probabilities() -> Float[np.ndarray, " logits"]:
    """1 / (1 + exp(-x)) in steps of x from -MAX_LOGIT on, rounded, and nowhere too sure."""
    with localcontext(Context(prec=28)):
        steps = range(round(2 * MAX_LOGIT / LOGIT_UNIT) + 1)
        powers = [(MAX_LOGIT - step * Decimal(LOGIT_UNIT)).exp() for step in steps]
        rounded = [round(1 / (1 + power) / Decimal(PROBABILITY_UNIT)) for power in powers]
    return (np.array(rounded) * PROBABILITY_UNIT).clip(MIN_PROBABILITY, 1 - MIN_PROBABILITY)

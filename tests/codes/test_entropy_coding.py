"""Compressed codes come back to the bit, and are as short as what is known of them allows."""

import math
import struct
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magvit2_pytorch.codes.code_model import (
    GRADIENT_UNIT,
    MIN_PROBABILITY,
    PROBABILITY_UNIT,
    WEIGHT_UNIT,
    CodeModel,
)
from magvit2_pytorch.codes.entropy_coding import HEADER_BYTES, compress, decompress, model_levels
from magvit2_pytorch.quantizers.fsq import FSQ
from magvit2_pytorch.quantizers.lfq import LFQ
from tests.conftest import DISCRETE, build, random_video

QUANTIZERS = {
    "lfq": LFQ(2**6),
    "lfq-large": LFQ(2**18),
    "lfq-several": LFQ(2**4, num_codebooks=3),
    "fsq": FSQ((8, 5, 5)),
    "fsq-several": FSQ((3, 4), num_codebooks=2),
}
LFQ_8 = LFQ(2**8)
unchecked = pytest.mark.usefixtures("without_type_checks")
"""Without checks of types, which take most of the time, and are made where codes come back."""


def random_codes(quantizer, grid, size=None):
    shape = grid if quantizer.num_codebooks == 1 else (*grid, quantizer.num_codebooks)
    return torch.randint(0, size or quantizer.codebook_size, shape)


def longest(codes, quantizer):
    """Bytes at fixed length, and what comes on top."""
    bits = math.ceil(math.log2(quantizer.codebook_size))
    return math.ceil(codes.numel() * bits / 8) + HEADER_BYTES


@pytest.mark.parametrize("name", QUANTIZERS)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_codes_come_back_and_are_never_longer_than_at_fixed_length(name, data):
    quantizer = QUANTIZERS[name]
    grid = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)))
    torch.manual_seed(data.draw(st.integers(0, 100)))
    size = data.draw(st.sampled_from([1, 2, 3, None]))
    codes = random_codes(quantizer, grid, size)
    if data.draw(st.booleans()):
        codes = codes[:1].expand_as(codes)
    compressed = compress(codes, quantizer)
    assert len(compressed) <= longest(codes, quantizer)
    again = decompress(compressed, quantizer)
    assert again.dtype == torch.int64
    assert torch.equal(again, codes)


@pytest.mark.parametrize("name", ["lfq-several", "fsq-several"])
def test_extreme_codes_come_back(name):
    quantizer = QUANTIZERS[name]
    for code in (0, quantizer.codebook_size - 1):
        codes = torch.full((2, 3, 1, quantizer.num_codebooks), code)
        assert torch.equal(decompress(compress(codes, quantizer), quantizer), codes)


@unchecked
def test_63_bits_come_back():
    quantizer = LFQ(2**63, entropy_groups=9)
    codes = torch.tensor([0, 2**63 - 1, 2**63 - 1, 0]).reshape(4, 1, 1).expand(4, 1, 2)
    compressed = compress(codes, quantizer)
    assert len(compressed) < longest(codes, quantizer)
    assert torch.equal(decompress(compressed, quantizer), codes)


@pytest.mark.parametrize("quantizer", DISCRETE)
def test_codes_of_a_tokenizer_come_back(quantizer):
    tokenizer = build("residual", "compress_space", "compress_time", quantizer=quantizer)
    codes = tokenizer.tokenize(random_video(3, (8, 8)))[0]
    assert torch.equal(decompress(compress(codes, tokenizer.quantizer), tokenizer.quantizer), codes)


def test_random_codes_cost_their_fixed_length():
    codes = random_codes(LFQ_8, (2, 8, 8))
    assert len(compress(codes, LFQ_8)) == longest(codes, LFQ_8)


@unchecked
def test_one_code_everywhere_costs_next_to_nothing():
    codes = torch.full((4, 8, 16), 0b1011_0010)
    assert len(compress(codes, LFQ_8)) < 4 * 8 * 16 / 10


def share_of_shuffled(codes, quantizer):
    """Bytes of codes, relative to those of the same codes in any order."""
    shuffled = codes.flatten()[torch.randperm(codes.numel())].view(codes.shape)
    return len(compress(codes, quantizer)) / len(compress(shuffled, quantizer))


@unchecked
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_repeats_is_seen(axis):
    """In time, downwards and to the right: few codes, so that none tells its neighbours."""
    quantizer, grid = LFQ(2**3), (9, 9, 9)
    codes = random_codes(quantizer, grid).narrow(axis, 0, 1).expand(grid)
    assert share_of_shuffled(codes, quantizer) < 0.3


@unchecked
def test_what_repeats_from_above_to_the_right_is_seen():
    values = torch.randint(0, 256, (60,))
    codes = torch.stack([values[torch.arange(24) + row] for row in range(32)])[None]
    assert share_of_shuffled(codes, LFQ_8) < 0.2


@unchecked
def test_what_repeats_within_a_code_is_seen():
    """Of 12 bits 6 are copies of the others, which the model has to find out on the way."""
    codes = torch.randint(0, 64, (4, 12, 12)) * 65
    assert len(compress(codes, LFQ(2**12))) * 8 < 7.65 * codes.numel()


@unchecked
@pytest.mark.parametrize("chance", [0.02, 0.3])
def test_independent_bits_cost_their_entropy(chance):
    quantizer = LFQ(2**3)
    bits = torch.rand(4, 24, 24, 3) < chance
    codes = (bits.long() << torch.arange(3)).sum(dim=-1)
    entropy = -chance * math.log2(chance) - (1 - chance) * math.log2(1 - chance)
    length = (len(compress(codes, quantizer)) - HEADER_BYTES) * 8 / bits.numel()
    assert 0.9 * entropy < length < 1.15 * entropy + 0.02


def chances_of(codes, quantizer):
    """What the model says of each bit that comes, as (chance of it, bits of its kind)."""
    levels = model_levels(quantizer)
    (book,) = levels
    places = np.cumprod((1, *book[:-1]))
    digits = codes.numpy()[..., None] // places % np.array(book)
    found = []

    def exchange(positions, digit, place, probabilities):
        bits = (digits[(*positions, digit)] >> place & 1).astype(bool)
        found.append((probabilities.copy(), bits))
        return bits

    model = CodeModel(levels)
    assert (model.visit(tuple(codes.shape), exchange) == digits).all()
    return model, found


@unchecked
@pytest.mark.parametrize("name", ["lfq", "fsq"])
def test_bytes_are_what_the_chances_say(name):
    quantizer = QUANTIZERS[name]
    codes = random_codes(quantizer, (4, 8, 8), 5)
    _, found = chances_of(codes, quantizer)
    ideal = sum(
        -np.log2(np.where(bits, probabilities, 1 - probabilities)).sum()
        for probabilities, bits in found
    )
    actual = len(compress(codes, quantizer)) - HEADER_BYTES
    assert ideal / 8 - 1 <= actual <= ideal / 8 + 8


@unchecked
def test_every_number_is_a_multiple_of_its_unit():
    """So that sums are exact in any order, and another machine reads what this one wrote."""
    model, found = chances_of(random_codes(QUANTIZERS["fsq"], (3, 8, 8), 20), QUANTIZERS["fsq"])
    for numbers, unit in (
        (model.bits.weights, WEIGHT_UNIT),
        (model.bits.squares, GRADIENT_UNIT**2),
        (np.concatenate([probabilities for probabilities, _ in found]), PROBABILITY_UNIT),
    ):
        assert (numbers / unit % 1 == 0).all()
        assert np.abs(numbers / unit).max() < 2**52
    probabilities = np.concatenate([probabilities for probabilities, _ in found])
    assert probabilities.min() >= MIN_PROBABILITY
    assert probabilities.max() <= 1 - MIN_PROBABILITY


def test_bytes_written_once_are_read_for_ever():
    """A change of the model needs another form, or these would be read as other codes."""
    codes = (torch.arange(3 * 5 * 6).reshape(3, 5, 6) // 7 * 11 % 64) & 0b101101
    assert compress(codes, QUANTIZERS["lfq"]).hex() == GOLDEN
    assert torch.equal(decompress(bytes.fromhex(GOLDEN), QUANTIZERS["lfq"]), codes)


GOLDEN = "02030000000500060071a8a75c85946b0044d5ad5cfcc84baf8c108709a88e448659140847f1a79d08"


def test_damage_is_told():
    codes = random_codes(LFQ_8, (3, 4, 5), 3)
    compressed = compress(codes, LFQ_8)
    assert compressed[0] == 2
    for place in range(len(compressed)):
        damaged = bytearray(compressed)
        damaged[place] ^= 16
        with pytest.raises(ValueError, match=r"damaged|not codes compressed by this version"):
            decompress(bytes(damaged), LFQ_8)
    for length in range(len(compressed)):
        with pytest.raises(ValueError, match=r"damaged|are not compressed codes"):
            decompress(compressed[:length], LFQ_8)
    with pytest.raises(ValueError, match="damaged"):
        decompress(compressed + b"\0", LFQ_8)


@pytest.mark.parametrize("other", [LFQ(2**9), LFQ(2**8, num_codebooks=2), FSQ((8, 8, 4))])
def test_another_codebook_is_told(other):
    for size in (2, None):
        compressed = compress(random_codes(LFQ_8, (3, 4, 5), size), LFQ_8)
        with pytest.raises(ValueError, match="another codebook"):
            decompress(compressed, other)


@pytest.mark.parametrize(("codes", "message"), [
    (torch.zeros(2, 3, 3), "give integers"),
    (torch.full((2, 3, 3), 256), "another tokenizer"),
    (torch.zeros(2, 3, 3, 2, dtype=torch.long), "give b t h w"),
    (torch.zeros(2, 0, 3, dtype=torch.long), "at least one frame"),
    (torch.zeros(1, 1, 65_536, dtype=torch.long), "65,535"),
])  # fmt: skip
def test_what_are_no_codes_is_refused(codes, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        compress(codes, LFQ_8)


def test_continuous_latents_have_no_codes():
    quantizer = build("residual", quantizer="continuous").quantizer
    with pytest.raises(ValueError, match="this tokenizer is continuous"):
        compress(torch.zeros(1, 2, 2, dtype=torch.long), quantizer)


def test_the_range_coder_is_named_where_it_is_missing(monkeypatch):
    compressed = compress(torch.zeros(1, 2, 2, dtype=torch.long), LFQ_8)
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ImportError, match=r"magvit2-pytorch\[entropy\]"):
        compress(torch.zeros(1, 2, 2, dtype=torch.long), LFQ_8)
    if compressed[0] == 2:
        with pytest.raises(ImportError, match=r"magvit2-pytorch\[entropy\]"):
            decompress(compressed, LFQ_8)


def test_the_header_says_the_grid():
    compressed = compress(random_codes(LFQ_8, (3, 4, 5)), LFQ_8)
    assert struct.unpack_from("<IHH", compressed, 1) == (3, 4, 5)

"""Digits of a code: what generators and entropy coders take codes apart into."""

import math

import pytest
import torch
from einops import rearrange

from magvit2_pytorch.quantizers.continuous import Continuous
from magvit2_pytorch.quantizers.fsq import FSQ
from magvit2_pytorch.quantizers.lfq import LFQ
from tests.conftest import QUANTIZERS, build
from tests.quantizers.test_quantizer_laws import DISCRETE, MAKE

LARGE = {
    "fsq-64000": lambda: FSQ((8, 8, 8, 5, 5, 5)),
    "fsq-large": lambda: FSQ((1000,) * 6),
    "lfq-2^36": lambda: LFQ(2**36, entropy_groups=4),
    "lfq-2^63": lambda: LFQ(2**63, entropy_groups=9, bit_order="lsb"),
    "lfq-one-bit": lambda: LFQ(2),
}
# What residual levels add up to is tested in test_residual_scalar.py.
ONE_LEVEL = [name for name in DISCRETE if not name.startswith("vq") and "residual" not in name]
SCALAR = {name: MAKE[name] for name in ONE_LEVEL} | LARGE


def value_of(quantizer, digit, level):
    """The channel that a digit stands for, by the definition of the quantizer."""
    if isinstance(quantizer, FSQ):
        return (digit - level // 2) / (level // 2)
    return (2 * digit - 1) * quantizer.scale


@pytest.mark.parametrize("name", SCALAR)
def test_a_code_is_the_sum_of_its_digits_times_the_levels_before_them(name):
    quantizer = SCALAR[name]().eval()
    levels = quantizer.digit_levels
    assert math.prod(levels) == quantizer.codebook_size
    grid = (2, 3, 4, 5, quantizer.num_codebooks)
    digits = [torch.randint(level, grid) for level in levels]
    codes = sum(d * math.prod(levels[:i]) for i, d in enumerate(digits))
    quantized = quantizer.decode_codes(codes)
    channels = rearrange(quantized, "b (q d) t h w -> d b t h w q", q=quantizer.num_codebooks)
    # With "msb" the first channel of LFQ is the last digit.
    if isinstance(quantizer, LFQ) and quantizer.bit_order == "msb":
        channels = channels.flip(0)
    for channel, digit, level in zip(channels, digits, levels, strict=True):
        torch.testing.assert_close(channel, value_of(quantizer, digit, level).float())


def test_levels_of_each_kind():
    assert FSQ((8, 8, 8, 5, 5, 5)).digit_levels == (8, 8, 8, 5, 5, 5)
    assert LFQ(2**16).digit_levels == (2,) * 16
    assert MAKE["vq"]().digit_levels == MAKE["vq-sim"]().digit_levels == (50,)
    assert MAKE["vq-residual"]().digit_levels == (16,)
    assert Continuous(4).digit_levels is None


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_tokenizer_has_those_of_its_quantizer(quantizer):
    tokenizer = build("residual", quantizer=quantizer)
    assert tokenizer.digit_levels == tokenizer.quantizer.digit_levels

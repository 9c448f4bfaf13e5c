"""Conversion between bits and integer codes, in either bit order."""

from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

BitOrder = Literal["msb", "lsb"]
"""Significance of the first bit: the most ("msb") or the least ("lsb") significant."""

MAX_BITS = 63
"""Bits of an int64 without its sign."""


def bits_to_codes(bits: Bool[Tensor, "*n d"], order: BitOrder = "msb") -> Int[Tensor, "*n"]:
    """Integers, int64, whose bits are on the last axis."""
    return (bits.long() << _shifts(bits.shape[-1], order, bits.device)).sum(dim=-1)


def codes_to_bits(
    codes: Int[Tensor, "*n"], num_bits: int, order: BitOrder = "msb"
) -> Bool[Tensor, "*n d"]:
    """Bits of integers, on a new last axis."""
    return (codes.long()[..., None] >> _shifts(num_bits, order, codes.device) & 1).bool()


def convert_bit_order(codes: Int[Tensor, "*n"], num_bits: int) -> Int[Tensor, "*n"]:
    """Reverses the bits of codes: from "msb" to "lsb" order, or back.

    O2-MAGVIT2 and vector-quantize-pytorch use "msb"; equation 4 of MAGVIT-v2 and Open-MAGVIT2
    use "lsb".
    """
    if not 1 <= num_bits <= MAX_BITS:
        raise ValueError(f"num_bits is {num_bits}: codes have 1 to {MAX_BITS} bits")
    return bits_to_codes(codes_to_bits(codes, num_bits, "msb"), "lsb")


def _shifts(num_bits: int, order: BitOrder, device: torch.device) -> Int[Tensor, " d"]:
    shifts = torch.arange(num_bits, device=device)
    return shifts.flip(0) if order == "msb" else shifts

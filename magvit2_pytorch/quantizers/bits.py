"""Bits and the integers they make, in either order."""

from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

BitOrder = Literal["msb", "lsb"]
"""Whether the first bit is the most or the least significant one."""

MAX_BITS = 63
"""What fits an int64 without its sign."""


def bits_to_codes(bits: Bool[Tensor, "*n d"], order: BitOrder = "msb") -> Int[Tensor, "*n"]:
    """The integers, int64, that the bits of the last axis spell."""
    return (bits.long() << _places(bits.shape[-1], order, bits.device)).sum(dim=-1)


def codes_to_bits(
    codes: Int[Tensor, "*n"], num_bits: int, order: BitOrder = "msb"
) -> Bool[Tensor, "*n d"]:
    """The bits of integers, along a new last axis."""
    return (codes.long()[..., None] >> _places(num_bits, order, codes.device) & 1).bool()


def convert_bit_order(codes: Int[Tensor, "*n"], num_bits: int) -> Int[Tensor, "*n"]:
    """Codes with their bits reversed: from "msb" to "lsb" order, or back.

    O2-MAGVIT2 and vector-quantize-pytorch number codes "msb"; equation 4 of MAGVIT-v2 and
    Open-MAGVIT2 "lsb".
    """
    if not 1 <= num_bits <= MAX_BITS:
        raise ValueError(f"num_bits is {num_bits}: codes have 1 to {MAX_BITS} of them")
    return bits_to_codes(codes_to_bits(codes, num_bits, "msb"), "lsb")


def _places(num_bits: int, order: BitOrder, device: torch.device) -> Int[Tensor, " d"]:
    places = torch.arange(num_bits, device=device)
    return places.flip(0) if order == "msb" else places

"""Quantizers, from latents to codes and back."""

from magvit2_pytorch.quantizers.continuous import Continuous
from magvit2_pytorch.quantizers.fsq import FSQ
from magvit2_pytorch.quantizers.lfq import LFQ, convert_bit_order
from magvit2_pytorch.quantizers.quantizer import QUANTIZERS, Quantized, Quantizer, build_quantizer
from magvit2_pytorch.quantizers.residual_scalar import ResidualFSQ, ResidualLFQ
from magvit2_pytorch.quantizers.vector import VectorQuantizer

__all__ = [
    "FSQ",
    "LFQ",
    "QUANTIZERS",
    "Continuous",
    "Quantized",
    "Quantizer",
    "ResidualFSQ",
    "ResidualLFQ",
    "VectorQuantizer",
    "build_quantizer",
    "convert_bit_order",
]

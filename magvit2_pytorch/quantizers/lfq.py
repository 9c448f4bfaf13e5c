"""Lookup-free quantization: each channel's sign is a bit of the code."""

import math
import warnings
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.config import check_at_least_one
from magvit2_pytorch.functional import at_least_float32
from magvit2_pytorch.quantizers.entropy import (
    bit_logits,
    codebook_entropy,
    group_sizes,
    sample_entropy,
)
from magvit2_pytorch.quantizers.quantizer import (
    QUANTIZERS,
    CodeNorm,
    CodeNormName,
    Quantized,
    Quantizer,
    StoredCodes,
    straight_through,
    without_autocast,
)
from magvit2_pytorch.types import Latents

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


@QUANTIZERS.register("lfq")
class LFQ(Quantizer):
    """Quantizes each latent channel to its sign, one bit of a code.

    Bit i of a code is 1 if latent channel i is above 0; there is no table of codes. Before the
    signs are taken, latents optionally pass a `norm` over the channels of a code, with
    `soft_clamp_input_value` s the function s tanh(z / s), and with `spherical` a projection to the
    unit sphere, in this order. Spherical codes have entries of +-1 / sqrt(d), others of +-1.
    With `bit_order` "msb", channel 0 is the most significant bit (O2-MAGVIT2,
    vector-quantize-pytorch); with "lsb" the least (equation 4 of the paper, Open-MAGVIT2).

    The loss is entropy_loss_weight * (sample_entropy - diversity_gamma * codebook_entropy)
    + commitment_loss_weight * commitment. The entropy weight starts at `entropy_anneal_factor`
    times its value and falls linearly within `entropy_anneal_steps`. O2-MAGVIT2 anneals by a factor
    of 3 and has an `entropy_eps` of 1e-5: above 2^16 codes the entropy stays below its maximum.

    The codebook entropy is that of the mean over one micro-batch; with `distributed` and in
    training mode, over the micro-batches of all processes. It is exact up to 2^20 codes. Larger
    codebooks are split into `entropy_groups` of bits (see `codebook_entropy`); 1 is always exact.
    Sources: MAGVIT-v2 (arXiv 2310.05737), section 3.1; spherical and groups: BSQ
    (arXiv 2406.07548).
    """

    def __init__(
        self,
        codebook_size: int,
        num_codebooks: int = 1,
        entropy_loss_weight: float = 0.02,
        commitment_loss_weight: float = 0.05,
        diversity_gamma: float = 1.0,
        temperature: float = 0.01,
        entropy_eps: float = 0.0,
        entropy_groups: int | None = None,
        entropy_anneal_factor: float = 1.0,
        entropy_anneal_steps: int = 2000,
        spherical: bool = False,
        norm: CodeNormName | None = None,
        soft_clamp_input_value: float | None = None,
        bit_order: BitOrder = "msb",
        distributed: bool = True,
    ):
        super().__init__()
        self.codebook_size, self.num_codebooks = codebook_size, num_codebooks
        self.num_bits = _num_bits(codebook_size)
        self.entropy_loss_weight, self.diversity_gamma = entropy_loss_weight, diversity_gamma
        self.commitment_loss_weight = commitment_loss_weight
        self.entropy_anneal_factor = entropy_anneal_factor
        self.entropy_anneal_steps = entropy_anneal_steps
        self.temperature, self.entropy_eps = temperature, entropy_eps
        self.entropy_groups = len(group_sizes(self.num_bits, entropy_groups))
        self.spherical, self.soft_clamp_input_value = spherical, soft_clamp_input_value
        self.bit_order, self.distributed = bit_order, distributed
        self.scale = 1 / math.sqrt(self.num_bits) if spherical else 1.0
        """Absolute value of the entries of a code."""
        self._check()
        if entropy_groups is None and self.entropy_groups > 1:
            warnings.warn(
                f"2^{self.num_bits} codes are too many to average: codebook_entropy is the sum "
                f"over {self.entropy_groups} groups of bits, an upper bound; give "
                f"entropy_groups={self.entropy_groups} to accept this",
                stacklevel=2,
            )
        self.latent_dim = self.quantized_dim = self.num_bits * num_codebooks
        self.norm = None if norm is None else CodeNorm(norm, num_codebooks, self.num_bits)

    def _check(self):
        check_at_least_one(num_codebooks=self.num_codebooks)
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}: it must be above 0")
        if self.entropy_eps < 0 or self.entropy_anneal_factor < 0 or self.entropy_anneal_steps < 0:
            raise ValueError(
                f"entropy_eps {self.entropy_eps}, entropy_anneal_factor "
                f"{self.entropy_anneal_factor} and entropy_anneal_steps "
                f"{self.entropy_anneal_steps} must not be negative"
            )
        if self.soft_clamp_input_value is not None and self.soft_clamp_input_value < 1:
            raise ValueError(
                f"soft_clamp_input_value is {self.soft_clamp_input_value}: use 1 or more, or no "
                "latent can reach its code"
            )
        if self.bit_order not in ("msb", "lsb"):
            raise ValueError(f"bit_order {self.bit_order!r}: use 'msb' or 'lsb'")

    @property
    def digit_levels(self) -> tuple[int, ...]:
        return (2,) * self.num_bits

    def forward(self, latents: Latents) -> Quantized:
        with without_autocast(latents):
            z = self._prepare(latents)
            bits = z > 0
            codes = bits_to_codes(bits, self.bit_order)
            quantized = straight_through(z, self._signs(bits, z.dtype))
        return Quantized(
            rearrange(quantized, "b t h w q d -> b (q d) t h w"),
            codes[..., 0] if self.num_codebooks == 1 else codes,
        )

    def decode_codes(self, codes: StoredCodes) -> Latents:
        bits = codes_to_bits(self.check_codes(codes), self.num_bits, self.bit_order)
        return rearrange(self._signs(bits, torch.float32), "b t h w q d -> b (q d) t h w")

    def loss_terms(self, latents: Latents) -> dict[str, Tensor]:
        """Entropies in nats, averaged over codebooks, and the commitment loss."""
        with without_autocast(latents):
            z = self._prepare(latents)
            logits = bit_logits(
                rearrange(z, "b t h w q d -> q (b t h w) d"), self.temperature, self.scale
            )
            # Outside of training one process may run alone and must not wait for the others.
            distributed = self.distributed and self.training
            return {
                "sample_entropy": sample_entropy(logits),
                "codebook_entropy": codebook_entropy(
                    logits, self.entropy_eps, self.entropy_groups, distributed
                ),
                "commitment": (z - self._signs(z > 0, z.dtype)).square().mean(),
            }

    def loss_weights(self, step: int) -> dict[str, float]:
        entropy = self.entropy_loss_weight
        if step < self.entropy_anneal_steps:
            remaining = 1 - step / self.entropy_anneal_steps
            entropy *= 1 + (self.entropy_anneal_factor - 1) * remaining
        return {
            "sample_entropy": entropy,
            "codebook_entropy": -entropy * self.diversity_gamma,
            "commitment": self.commitment_loss_weight,
        }

    def _prepare(self, latents: Latents) -> Float[Tensor, "b t h w q k"]:
        self.check_latents(latents)
        z = rearrange(
            at_least_float32(latents), "b (q d) t h w -> b t h w q d", q=self.num_codebooks
        )
        z = z if self.norm is None else self.norm(z)
        limit = self.soft_clamp_input_value
        z = z if limit is None else limit * (z / limit).tanh()
        # The eps bounds the gradient of latents near 0, where the projection is singular.
        return F.normalize(z, dim=-1, eps=1e-3) if self.spherical else z

    def _signs(self, bits: Bool[Tensor, "*n d"], dtype: torch.dtype) -> Float[Tensor, "*n d"]:
        return (2 * bits.to(dtype) - 1) * self.scale


def _num_bits(codebook_size: int) -> int:
    """Returns log2 of a power of two, else raises `ValueError`."""
    num_bits = codebook_size.bit_length() - 1
    if codebook_size < 2 or codebook_size != 2**num_bits:
        lower = 2 ** max(1, num_bits)
        raise ValueError(
            f"codebook_size {codebook_size} is not a power of two: "
            f"lookup-free codes are bits, use {lower} or {lower * 2}"
        )
    if num_bits > MAX_BITS:
        raise ValueError(f"codes of {num_bits} bits do not fit int64: use at most {MAX_BITS} bits")
    return num_bits

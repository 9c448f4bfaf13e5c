"""Lookup-free quantization: a code is the signs of its latent."""

import math
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.quantizers.entropy import bit_logits, codebook_entropy, sample_entropy
from magvit2_pytorch.quantizers.quantizer import (
    QUANTIZERS,
    Quantized,
    Quantizer,
    wide,
    without_autocast,
)
from magvit2_pytorch.types import Codes, Latents

BitOrder = Literal["msb", "lsb"]
Norm = Literal["layer", "rms"]


@QUANTIZERS.register("lfq")
class LFQ(Quantizer):
    """Bit i of a code is 1 where latent channel i is above 0. No codebook exists anywhere.

    `bit_order` says whether channel 0 is the most significant bit ("msb": O2-MAGVIT2 and
    vector-quantize-pytorch) or the least ("lsb": equation 4 of the paper, Open-MAGVIT2).
    `spherical` puts latents and codes on the unit sphere. `norm` is taken over the bits of a
    code, before all else. The entropy loss is `sample_entropy - diversity_gamma *
    codebook_entropy`, its weight falling from `entropy_anneal_factor` times its own over
    `entropy_anneal_steps`.
    Sources: MAGVIT-v2 (arXiv 2310.05737), section 3.1; spherical: BSQ (arXiv 2406.07548).
    """

    def __init__(
        self,
        codebook_size: int,
        num_codebooks: int = 1,
        entropy_loss_weight: float = 0.1,
        commitment_loss_weight: float = 0.25,
        diversity_gamma: float = 1.0,
        temperature: float = 0.01,
        entropy_eps: float = 0.0,
        entropy_groups: int | None = None,
        entropy_anneal_factor: float = 1.0,
        entropy_anneal_steps: int = 2000,
        spherical: bool = False,
        norm: Norm | None = None,
        bit_order: BitOrder = "msb",
        distributed: bool = True,
    ):
        super().__init__()
        if codebook_size < 2 or codebook_size & (codebook_size - 1):
            below = 2 ** max(1, int(math.log2(max(2, codebook_size))))
            raise ValueError(
                f"codebook_size {codebook_size} is no power of two: "
                f"lookup-free codes are bits, use {below} or {below * 2}"
            )
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}: it must be above 0")
        if norm not in (None, "layer", "rms"):
            raise ValueError(f"norm {norm!r}: use 'layer', 'rms' or None")
        if bit_order not in ("msb", "lsb"):
            raise ValueError(f"bit_order {bit_order!r}: use 'msb' or 'lsb'")
        self.codebook_size, self.num_codebooks = codebook_size, num_codebooks
        self.num_bits = codebook_size.bit_length() - 1
        self.latent_dim = self.quantized_dim = self.num_bits * num_codebooks
        self.entropy_loss_weight = entropy_loss_weight
        self.commitment_loss_weight = commitment_loss_weight
        self.diversity_gamma = diversity_gamma
        self.temperature = temperature
        self.entropy_eps = entropy_eps
        self.entropy_groups = entropy_groups
        self.entropy_anneal_factor = entropy_anneal_factor
        self.entropy_anneal_steps = entropy_anneal_steps
        self.spherical, self.norm, self.bit_order = spherical, norm, bit_order
        self.distributed = distributed
        self.scale = 1 / math.sqrt(self.num_bits) if spherical else 1.0
        """Size of the entries of a code."""

    def forward(self, latents: Latents) -> Quantized:
        with without_autocast(latents):
            z = self._normalized(latents)
            bits = z > 0
            quantized = self._signs(bits, z.dtype)
            if self.training:
                quantized = z + (quantized - z).detach()
            codes = (bits * self._powers(z.device)).sum(dim=-1)
            return Quantized(self._to_channels(quantized), self._squeezed(codes))

    def decode_codes(self, codes: Codes) -> Latents:
        codes = self.check_codes(codes)
        bits = codes[..., None].bitwise_and(self._powers(codes.device)) != 0
        return self._to_channels(self._signs(bits, torch.float32))

    def loss_terms(self, latents: Latents) -> dict[str, Tensor]:
        """Entropies in nats, averaged over codebooks, and the mean squared distance to codes."""
        with without_autocast(latents):
            z = self._normalized(latents)
            rows = rearrange(z, "b t h w q d -> q (b t h w) d")
            logits = bit_logits(rows, self.temperature, self.scale)
            groups, eps = self.entropy_groups, self.entropy_eps
            return {
                "sample_entropy": torch.stack([sample_entropy(rows) for rows in logits]).mean(),
                "codebook_entropy": torch.stack(
                    [codebook_entropy(rows, eps, groups, self.distributed) for rows in logits]
                ).mean(),
                "commitment": (z - self._signs(z > 0, z.dtype)).square().mean(),
            }

    def loss_weights(self, step: int) -> dict[str, float]:
        left = max(0.0, 1 - step / max(1, self.entropy_anneal_steps))
        entropy = self.entropy_loss_weight * (1 + (self.entropy_anneal_factor - 1) * left)
        return {
            "sample_entropy": entropy,
            "codebook_entropy": -entropy * self.diversity_gamma,
            "commitment": self.commitment_loss_weight,
        }

    def _normalized(self, latents: Latents) -> Float[Tensor, "b j y x q k"]:
        z = rearrange(wide(latents), "b (q d) t h w -> b t h w q d", q=self.num_codebooks)
        if self.norm == "layer":
            z = F.layer_norm(z, z.shape[-1:])
        elif self.norm == "rms":
            z = z * torch.rsqrt(z.square().mean(dim=-1, keepdim=True) + 1e-6)
        return F.normalize(z, dim=-1) if self.spherical else z

    def _signs(self, bits: Tensor, dtype: torch.dtype) -> Float[Tensor, "b j y x q k"]:
        return torch.where(bits, self.scale, -self.scale).to(dtype)

    def _powers(self, device: torch.device) -> Int[Tensor, " k"]:
        exponents = torch.arange(self.num_bits, device=device)
        return 2 ** (exponents.flip(0) if self.bit_order == "msb" else exponents)

    def _to_channels(self, quantized: Float[Tensor, "b j y x q k"]) -> Latents:
        return rearrange(quantized, "b t h w q d -> b (q d) t h w")

    def _squeezed(self, codes: Int[Tensor, "b j y x q"]) -> Codes:
        return codes[..., 0] if self.num_codebooks == 1 else codes


def convert_bit_order(codes: Int[Tensor, "..."], num_bits: int) -> Int[Tensor, "..."]:
    """Codes with their bits reversed: from "msb" to "lsb" order, or back."""
    places = torch.arange(num_bits, device=codes.device)
    bits = codes[..., None].bitwise_right_shift(places).bitwise_and(1)
    return (bits * 2 ** places.flip(0)).sum(dim=-1)

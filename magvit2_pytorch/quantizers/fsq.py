"""Finite scalar quantization: each latent channel is rounded to a few levels."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from magvit2_pytorch.config import check_at_least_one
from magvit2_pytorch.functional import at_least_float32
from magvit2_pytorch.quantizers.quantizer import (
    QUANTIZERS,
    CodeNorm,
    CodeNormName,
    Quantized,
    Quantizer,
    StoredCodes,
    place_values,
    straight_through,
    without_autocast,
)
from magvit2_pytorch.types import Latents

MARGIN = 1e-3
"""Relative overshoot of tanh, so that finite latents reach the outermost level."""


@QUANTIZERS.register("fsq")
class FSQ(Quantizer):
    """Rounds tanh of the latents, in float32: bf16 would merge codes.

    Channel i of a code has `levels[i]` values, evenly spaced in [-1, 1]. The first channel is the
    least significant digit of the code; the codebook size is the product of the levels. `norm` is
    applied first, over the channels of a code. There is no auxiliary loss.
    Source: FSQ (arXiv 2309.15505), whose section 4.1 recommends five or more levels.
    Values and codes agree with vector-quantize-pytorch.
    """

    def __init__(
        self, levels: Sequence[int], num_codebooks: int = 1, norm: CodeNormName | None = None
    ):
        super().__init__()
        # From 1001 levels on, MARGIN would reach an additional level.
        if not levels or any(not 3 <= level <= 1000 for level in levels):
            raise ValueError(
                f"fsq levels {tuple(levels)}: give 3 to 1000 for every channel "
                "(for 2 levels use LFQ)"
            )
        if math.prod(levels) > 2**63:
            raise ValueError(f"fsq levels {tuple(levels)}: their product must fit 63 bits")
        check_at_least_one(num_codebooks=num_codebooks)
        self.levels = tuple(levels)
        self.codebook_size, self.num_codebooks = math.prod(levels), num_codebooks
        self.latent_dim = self.quantized_dim = len(levels) * num_codebooks
        self.norm = None if norm is None else CodeNorm(norm, num_codebooks, len(levels))

    @property
    def digit_levels(self) -> tuple[int, ...]:
        return self.levels

    def forward(self, latents: Latents) -> Quantized:
        self.check_latents(latents)
        with without_autocast(latents):
            z = rearrange(
                at_least_float32(latents), "b (q d) t h w -> b t h w q d", q=self.num_codebooks
            )
            z = z if self.norm is None else self.norm(z)
            half, bounded = self._half_levels(z), self._bound(z)
            rounded = bounded.round()
            quantized = straight_through(bounded / half, rounded / half)
            # NaN, which training must survive, would become a number far below all codes.
            digits = rounded.nan_to_num().long() + half
            codes = (digits * self._basis(z)).sum(dim=-1)
        return Quantized(
            rearrange(quantized, "b t h w q d -> b (q d) t h w"),
            codes[..., 0] if self.num_codebooks == 1 else codes,
        )

    def decode_codes(self, codes: StoredCodes) -> Latents:
        codes = self.check_codes(codes)[..., None]
        digits = codes // self._basis(codes) % torch.tensor(self.levels, device=codes.device)
        half = self._half_levels(codes)
        return rearrange((digits - half).float() / half, "b t h w q d -> b (q d) t h w")

    def _bound(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Bounds latents to values that round to -(L // 2) and above."""
        levels = torch.tensor(self.levels, device=z.device, dtype=z.dtype)
        limit = (levels - 1) * (1 + MARGIN) / 2
        # An even number of levels has one more below 0 than above; 0 still maps to 0.
        offset = 0.5 * (levels % 2 == 0)
        return (z + (offset / limit).atanh()).tanh() * limit - offset

    # Computed in each call: non-persistent buffers would lose their values on the meta device.
    def _half_levels(self, like: Tensor) -> Int[Tensor, " d"]:
        return torch.tensor([level // 2 for level in self.levels], device=like.device)

    def _basis(self, like: Tensor) -> Int[Tensor, " d"]:
        return place_values(self.levels, like.device)

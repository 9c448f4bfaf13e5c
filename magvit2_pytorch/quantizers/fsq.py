"""Finite-scalar quantization: every latent channel is rounded to a few levels."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange

from magvit2_pytorch.quantizers.quantizer import (
    QUANTIZERS,
    Quantized,
    Quantizer,
    wide,
    without_autocast,
)
from magvit2_pytorch.types import Codes, Latents


@QUANTIZERS.register("fsq")
class FSQ(Quantizer):
    """vector-quantize-pytorch's FSQ, kept in float32: in bf16 it would lose codes.

    The codebook has the product of the levels for a size. It needs no auxiliary loss.
    Source: FSQ (arXiv 2309.15505).
    """

    def __init__(self, levels: Sequence[int], num_codebooks: int = 1):
        super().__init__()
        if not levels or any(level < 2 for level in levels):
            raise ValueError(f"fsq levels {tuple(levels)}: give two or more for every channel")
        # Slow to import, and only FSQ needs it.
        from vector_quantize_pytorch import FSQ as Rounding

        self.codebook_size, self.num_codebooks = math.prod(levels), num_codebooks
        self.latent_dim = self.quantized_dim = len(levels) * num_codebooks
        self.rounding = Rounding(
            list(levels),
            dim=self.latent_dim,
            num_codebooks=num_codebooks,
            keep_num_codebooks_dim=True,
        )

    def forward(self, latents: Latents) -> Quantized:
        batch, _, _, height, width = latents.shape
        with without_autocast(latents):
            rows = rearrange(wide(latents), "b d t h w -> b (t h w) d")
            quantized, codes = self.rounding(rows)
        grid = dict(b=batch, h=height, w=width)
        codes = rearrange(codes.long(), "b (t h w) q -> b t h w q", **grid)
        return Quantized(
            rearrange(quantized, "b (t h w) d -> b d t h w", **grid),
            codes[..., 0] if self.num_codebooks == 1 else codes,
        )

    @torch.no_grad()
    def decode_codes(self, codes: Codes) -> Latents:
        codes = self.check_codes(codes)
        _, time, height, _, _ = codes.shape
        rows = self.rounding.indices_to_codes(rearrange(codes, "b t h w q -> b (t h w) q"))
        return rearrange(rows, "b (t h w) d -> b d t h w", t=time, h=height)

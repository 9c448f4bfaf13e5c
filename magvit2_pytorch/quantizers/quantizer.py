"""What every quantizer is to a tokenizer."""

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from magvit2_pytorch.registry import Registry
from magvit2_pytorch.types import Codes, Latents

StoredCodes = Shaped[Tensor, "b ..."]
"""What may be codes: `check_codes` says what is wrong with those that are not."""


class Quantized(NamedTuple):
    """What `decode` hears, and the codes it stands for (None where latents are continuous)."""

    quantized: Latents
    codes: Codes | None


class Quantizer(nn.Module, ABC):
    """Latents to codes and back. Runs in float32 or wider, whatever autocast says.

    The total auxiliary loss is the sum of `loss_terms`, each times its `loss_weights`.
    """

    latent_dim: int
    """Channels that the encoder gives."""
    quantized_dim: int
    """Channels that the decoder is given."""
    num_codebooks: int = 1
    codebook_size: int | None = None

    @property
    def bits_per_position(self) -> float | None:
        """Bits of code at a latent position; None where latents are continuous."""
        size = self.codebook_size
        return None if size is None else math.log2(size) * self.num_codebooks

    @abstractmethod
    def forward(self, latents: Latents) -> Quantized:
        """Values are exactly those of the codes; gradients pass as if nothing had happened."""

    @abstractmethod
    def decode_codes(self, codes: StoredCodes) -> Latents:
        """The quantized latents that codes stand for; `ValueError` if they are no such codes."""

    def loss_terms(self, latents: Latents) -> dict[str, Tensor]:
        """Named scalars, unweighted; none for a quantizer that needs no help."""
        self.check_latents(latents)
        return {}

    def loss_weights(self, step: int) -> dict[str, float]:
        """The weight of each of `loss_terms` at an optimizer step."""
        return {}

    def normalize(self, latents: Latents) -> Latents:
        """Continuous latents with mean 0 and standard deviation 1 in each channel."""
        raise ValueError(
            "this tokenizer is discrete: a model of its codes needs nothing normalized. Only "
            "latents of a tokenizer with continuous_dim are"
        )

    def denormalize(self, normalized: Latents) -> Latents:
        """Undoes `normalize`."""
        return self.normalize(normalized)  # raises

    def check_latents(self, latents: Tensor) -> None:
        """Raises `ValueError` unless they have the channels that this quantizer takes."""
        if latents.ndim != 5 or latents.shape[1] != self.latent_dim:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}, but this quantizer takes b d t h w "
                f"with d = {self.latent_dim}"
            )

    def check_codes(self, codes: StoredCodes) -> Int[Tensor, "b t h w q"]:
        """Codes as int64 with their codebook axis, or a `ValueError` that says what is wrong."""
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"codes are {codes.dtype}: give integers, as tokenize does")
        codes, shape = codes.long(), tuple(codes.shape)
        if self.num_codebooks == 1 and codes.ndim == 4:
            codes = rearrange(codes, "b t h w -> b t h w 1")
        if codes.ndim != 5 or codes.shape[-1] != self.num_codebooks:
            axes = "b t h w" if self.num_codebooks == 1 else f"b t h w {self.num_codebooks}"
            raise ValueError(f"codes have shape {shape}: give {axes}")
        # In a traced graph, and without values to look at, there is nothing to check.
        if codes.numel() and not codes.is_meta and not torch.compiler.is_compiling():
            low, high = int(codes.min()), int(codes.max())
            if low < 0 or high >= self.codebook_size:
                raise ValueError(
                    f"codes reach from {low} to {high}, but the codebook has "
                    f"{self.codebook_size}: are they another tokenizer's?"
                )
        return codes


QUANTIZERS: Registry[type[Quantizer]] = Registry("quantizer")


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Switches autocast off where `x` lives."""
    kind = x.device.type
    # "meta" and other devices without autocast refuse even to have it switched off.
    known = torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if known else nullcontext()


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` to the bit, with the gradient of `latents`.

    The usual z + (q - z).detach() is off by rounding, and wholly wrong where |z| is large.
    """
    if not latents.requires_grad:
        return quantized
    return quantized.detach() + (latents - latents.detach())

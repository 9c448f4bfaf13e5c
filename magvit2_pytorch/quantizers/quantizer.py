"""Interface of all quantizers, and the norm in front of one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from magvit2_pytorch.config import Registry, check_known
from magvit2_pytorch.layers.arithmetic import layer_norm
from magvit2_pytorch.types import Codes, Latents

CodeNormName = Literal["layer", "rms"]


class CodeNorm(nn.Module):
    """Layer or RMS norm per position and codebook, with a learned gain.

    It keeps latents near the thresholds at any scale of the encoder, so that all codes can be
    reached (vector-quantize-pytorch issue 89). A layer norm also has a learned bias: without one
    its channels sum to 0, and codes whose signs are all equal could never occur.
    """

    def __init__(self, name: CodeNormName, num_codebooks: int, dim: int):
        super().__init__()
        if name not in ("layer", "rms"):
            raise ValueError(f"norm {name!r}: use 'layer', 'rms' or None")
        if name == "layer" and dim < 3:
            raise ValueError(
                f"a layer norm over {dim} channels leaves no freedom for codes: use 'rms'"
            )
        self.dim = dim
        # One axis: optimizers treat parameters of two axes as matrices, with weight decay or Muon.
        self.gain = nn.Parameter(torch.ones(num_codebooks * dim))
        self.bias = nn.Parameter(torch.zeros(num_codebooks * dim)) if name == "layer" else None

    def forward(self, z: Float[Tensor, "*n q d"]) -> Float[Tensor, "*n q d"]:
        gain = self.gain.to(z.dtype).view(-1, self.dim)
        if self.bias is None:
            return z * torch.rsqrt(z.square().mean(dim=-1, keepdim=True) + 1e-6) * gain
        return layer_norm(z) * gain + self.bias.to(z.dtype).view(-1, self.dim)


StoredCodes = Shaped[Tensor, "b ..."]
"""Codes of any shape and type, still to be checked by `check_codes`."""


class Quantized(NamedTuple):
    """Quantized latents and their codes (None if latents are continuous)."""

    quantized: Latents
    codes: Codes | None


class Quantizer(nn.Module, ABC):
    """Maps latents to codes and back, in at least float32, despite autocast.

    The total auxiliary loss is the sum of the `loss_terms`, weighted by `loss_weights`.
    """

    latent_dim: int
    """Channels of the encoder output."""
    quantized_dim: int
    """Channels of the decoder input."""
    num_codebooks: int = 1
    codebook_size: int | None = None

    @property
    def bits_per_position(self) -> float | None:
        """Bits of the codes at one position; None if latents are continuous."""
        size = self.codebook_size
        return None if size is None else math.log2(size) * self.num_codebooks

    @property
    def digit_levels(self) -> tuple[int, ...] | None:
        """Number of values of each digit of a code.

        The least significant digit is first: a code is the sum of its digits, each times the
        product of the levels before it. Without digits it is its own only one; None if latents are
        continuous.
        """
        return None if self.codebook_size is None else (self.codebook_size,)

    @abstractmethod
    def forward(self, latents: Latents) -> Quantized:
        """Quantizes latents to the exact values of their codes; gradients pass through."""

    @abstractmethod
    def decode_codes(self, codes: StoredCodes) -> Latents:
        """Quantized latents of codes; `ValueError` if the codes are not valid."""

    def loss_terms(self, latents: Latents) -> dict[str, Tensor]:
        """Auxiliary losses by name, not weighted; none by default."""
        self.check_latents(latents)
        return {}

    def loss_weights(self, step: int) -> dict[str, float]:
        """Weight of each of the `loss_terms` at an optimizer step."""
        return {}

    def normalize(self, latents: Latents) -> Latents:
        """Normalizes continuous latents to mean 0 and standard deviation 1 per channel."""
        raise ValueError(
            "this tokenizer is discrete: only latents of a tokenizer with continuous_dim can be "
            "normalized"
        )

    def denormalize(self, normalized: Latents) -> Latents:
        """Undoes `normalize`."""
        return self.normalize(normalized)  # raises

    def check_latents(self, latents: Tensor) -> None:
        """Raises `ValueError` if the shape does not fit this quantizer."""
        if latents.ndim != 5 or latents.shape[1] != self.latent_dim:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}, but this quantizer takes b d t h w "
                f"with d = {self.latent_dim}"
            )

    def check_codes(self, codes: StoredCodes) -> Int[Tensor, "b t h w q"]:
        """Returns codes as int64 with a codebook axis, or raises `ValueError`."""
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"codes are {codes.dtype}: give integers, as tokenize does")
        codes, shape = codes.long(), tuple(codes.shape)
        if self.num_codebooks == 1 and codes.ndim == 4:
            codes = rearrange(codes, "b t h w -> b t h w 1")
        if codes.ndim != 5 or codes.shape[-1] != self.num_codebooks:
            axes = "b t h w" if self.num_codebooks == 1 else f"b t h w {self.num_codebooks}"
            raise ValueError(f"codes have shape {shape}: give {axes}")
        # While tracing, and on the meta device, there are no values to check.
        if codes.numel() and not codes.is_meta and not torch.compiler.is_compiling():
            low, high = int(codes.min()), int(codes.max())
            if low < 0 or high >= self.codebook_size:
                raise ValueError(
                    f"codes range from {low} to {high}, but the codebook has "
                    f"{self.codebook_size}: are they from another tokenizer?"
                )
        return codes


QUANTIZERS: Registry[type[Quantizer]] = Registry("quantizer")


def build_quantizer(name: str, **options: Any) -> Quantizer:
    """Builds a registered quantizer; raises `ValueError` on unknown options."""
    cls = QUANTIZERS[name]
    check_known(f"quantizer {name!r}", options, signature(cls).parameters)
    return cls(**options)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Disables autocast on the device of `x`."""
    device_type = x.device.type
    # Devices without autocast, such as "meta", raise an error even on disabling it.
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


def place_values(levels: Sequence[int], device: torch.device) -> Int[Tensor, " d"]:
    """Value of a 1 in each digit of a code, lowest first."""
    values = [math.prod(levels[:number]) for number in range(len(levels))]
    return torch.tensor(values, device=device)


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """Returns `quantized` exactly, with the gradient of `latents`.

    The usual z + (q - z).detach() has rounding errors, and is wrong if |z| is large.
    """
    if not latents.requires_grad:
        return quantized
    return quantized.detach() + (latents - latents.detach())

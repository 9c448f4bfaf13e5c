"""Residual scalar quantization, in levels that quantize the rest of earlier ones."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from magvit2_pytorch.functional import at_least_float32
from magvit2_pytorch.quantizers.lfq import LFQ, BitOrder
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


class ResidualScalar(Quantizer):
    """Scalar quantization in `residual_levels` levels; a position has one code per level.

    With r_1 the latents, level i quantizes r_i in steps of s_i = L^-(i - 1) for a channel of L
    values, q_i = s_i Q(r_i / s_i), and leaves r_(i + 1) = r_i - q_i to the next. The sum of all q_i
    is decoded: a channel is written as a number in base L. The gradient of the sum is that of the
    latents. A prefix of the levels decodes to its partial sum. In training, a share
    `level_dropout` of the samples keep a random number of levels, so that decoders learn prefixes.
    Sources: SoundStream (arXiv 2107.03312), algorithm 1 and section III-C. Values and codes agree
    with vector-quantize-pytorch.
    """

    levels: tuple[int, ...]
    """Values of each channel in each level."""

    def __init__(self, levels: Sequence[int], residual_levels: int, level_dropout: float):
        super().__init__()
        if residual_levels < 2:
            raise ValueError(
                f"residual_levels is {residual_levels}: give 2 or more, or use lfq or fsq"
            )
        if not 0 <= level_dropout <= 1:
            raise ValueError(f"level_dropout is {level_dropout}: give a share of 0 to 1")
        self.levels, self.level_dropout = tuple(levels), level_dropout
        self.codebook_size, self.num_codebooks = math.prod(levels), residual_levels
        self.latent_dim = self.quantized_dim = len(self.levels)

    @property
    def digit_levels(self) -> tuple[int, ...]:
        return self.levels

    def forward(self, latents: Latents) -> Quantized:
        self.check_latents(latents)
        with without_autocast(latents):
            z = self._bound(rearrange(at_least_float32(latents), "b d t h w -> b t h w d"))
            _, digits = self._split(z)
            quantized = straight_through(z, self._sum(self._values(digits, z), self._kept(z)))
            codes = (digits * self._basis(z)).sum(dim=-1)
        return Quantized(rearrange(quantized, "b t h w d -> b d t h w"), codes)

    def decode_codes(self, codes: StoredCodes) -> Latents:
        """Quantized latents of codes of all levels, or of the first ones."""
        codes = self.check_codes(codes)[..., None]
        sizes = torch.tensor(self.levels, device=codes.device)
        values = self._values(codes // self._basis(codes) % sizes, codes.float())
        return rearrange(self._sum(values), "b t h w d -> b d t h w")

    def check_codes(self, codes: StoredCodes) -> Int[Tensor, "b t h w q"]:
        given = codes.shape[-1] if codes.ndim == 5 else 0
        if 1 <= given < self.num_codebooks:
            # Levels left out are checked as those that are given.
            missing = codes[..., -1:].expand(*codes.shape[:-1], self.num_codebooks - given)
            return super().check_codes(torch.cat((codes, missing), dim=-1))[..., :given]
        return super().check_codes(codes)

    @abstractmethod
    def _bound(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Latents in the range of the first level."""

    @abstractmethod
    def _digits(self, x: Float[Tensor, "*n d"]) -> Int[Tensor, "*n d"]:
        """Places of the values nearest to latents, from 0."""

    def _split(
        self, z: Float[Tensor, "*n d"]
    ) -> tuple[Float[Tensor, "*n q d"], Int[Tensor, "*n q d"]]:
        """Input of each level in its scale, and digits of codes."""
        inputs, digits = [], []
        for scale in self._scales(z):
            inputs.append(z / scale)
            digits.append(self._digits(inputs[-1]))
            z = z - self._values(digits[-1], z) * scale
        return torch.stack(inputs, dim=-2), torch.stack(digits, dim=-2)

    def _values(self, digits: Int[Tensor, "*n d"], like: Tensor) -> Float[Tensor, "*n d"]:
        """Values of digits, evenly spaced from -1 to 1."""
        steps = torch.tensor(self.levels, device=like.device) - 1
        return (2 * digits - steps).to(like.dtype) / steps

    def _sum(
        self, values: Float[Tensor, "b t h w q d"], kept: Tensor | None = None
    ) -> Float[Tensor, "b t h w d"]:
        """Sum of the levels that are `kept`, by default all given."""
        total = torch.zeros_like(values[..., 0, :])
        scales = self._scales(values)
        for number, value in enumerate(values.unbind(-2)):
            part = value * scales[number]
            total = total + (part if kept is None else part * kept[:, number, None, None, None])
        return total

    def _kept(self, z: Tensor) -> Tensor | None:
        """Levels that are kept, 0 or 1; None for all."""
        if not (self.training and self.level_dropout):
            return None
        draws = torch.rand(2, len(z), 1, device=z.device, dtype=z.dtype)
        number = torch.where(draws[0] < self.level_dropout, draws[1] * self.num_codebooks, math.inf)
        return (torch.arange(self.num_codebooks, device=z.device) <= number).to(z.dtype)[..., None]

    # Computed in each call: non-persistent buffers would lose their values on the meta device.
    def _scales(self, like: Tensor) -> Float[Tensor, "q d"]:
        levels = torch.tensor(self.levels, device=like.device, dtype=like.dtype)
        return levels ** -torch.arange(self.num_codebooks, device=like.device)[:, None]

    def _basis(self, like: Tensor) -> Int[Tensor, " d"]:
        return place_values(self.levels, like.device)


@QUANTIZERS.register("residual_fsq")
class ResidualFSQ(ResidualScalar):
    """Finite scalar quantization in several levels; see `ResidualScalar`.

    Latents are bounded to c tanh(z / c) with c = 1 + 1 / (L - 1), whose ends round to the outermost
    values, and rounded symmetrically, also for even L. There is no auxiliary loss.
    Source: stable codec (arXiv 2411.19842), section 3.2.
    """

    def __init__(
        self,
        levels: Sequence[int] = (8, 5, 5),
        residual_levels: int = 2,
        level_dropout: float = 0.0,
        norm: CodeNormName | None = None,
    ):
        if not levels or any(not 2 <= level <= 1000 for level in levels):
            raise ValueError(f"fsq levels {tuple(levels)}: give 2 to 1000 for every channel")
        if math.prod(levels) > 2**63:
            raise ValueError(f"fsq levels {tuple(levels)}: their product must fit 63 bits")
        super().__init__(levels, residual_levels, level_dropout)
        self.norm = None if norm is None else CodeNorm(norm, 1, len(self.levels))

    def _bound(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        z = z if self.norm is None else self.norm(z[..., None, :])[..., 0, :]
        steps = torch.tensor(self.levels, device=z.device) - 1
        limit = (1 + 1 / steps).to(z.dtype)
        return (z / limit).tanh() * limit

    def _digits(self, x: Float[Tensor, "*n d"]) -> Int[Tensor, "*n d"]:
        steps = torch.tensor(self.levels, device=x.device) - 1
        # NaN, which training must survive, would become a number far below all codes.
        return (steps * (x.detach().clamp(-1, 1) + 1) / 2 + 0.5).floor().nan_to_num().long()


@QUANTIZERS.register("residual_lfq")
class ResidualLFQ(ResidualScalar):
    """Lookup-free quantization in levels; losses as `LFQ` with levels as codebooks."""

    def __init__(
        self,
        codebook_size: int = 2**6,
        residual_levels: int = 2,
        level_dropout: float = 0.0,
        entropy_loss_weight: float = 0.02,
        commitment_loss_weight: float = 0.05,
        diversity_gamma: float = 1.0,
        temperature: float = 0.01,
        entropy_eps: float = 0.0,
        entropy_groups: int | None = None,
        entropy_anneal_factor: float = 1.0,
        entropy_anneal_steps: int = 2000,
        norm: CodeNormName | None = None,
        soft_clamp_input_value: float | None = None,
        bit_order: BitOrder = "msb",
        distributed: bool = True,
    ):
        lfq = LFQ(
            codebook_size,
            residual_levels,
            entropy_loss_weight=entropy_loss_weight,
            commitment_loss_weight=commitment_loss_weight,
            diversity_gamma=diversity_gamma,
            temperature=temperature,
            entropy_eps=entropy_eps,
            entropy_groups=entropy_groups,
            entropy_anneal_factor=entropy_anneal_factor,
            entropy_anneal_steps=entropy_anneal_steps,
            soft_clamp_input_value=soft_clamp_input_value,
            bit_order=bit_order,
            distributed=distributed,
        )
        super().__init__(lfq.digit_levels, residual_levels, level_dropout)
        self.lfq = lfq
        self.norm = None if norm is None else CodeNorm(norm, 1, lfq.num_bits)

    def loss_terms(self, latents: Latents) -> dict[str, Tensor]:
        """Those of `LFQ`, averaged over levels."""
        self.check_latents(latents)
        with without_autocast(latents):
            z = self._bound(rearrange(at_least_float32(latents), "b d t h w -> b t h w d"))
            inputs = rearrange(self._split(z)[0], "b t h w q d -> b (q d) t h w")
            return self.lfq.loss_terms(inputs)

    def loss_weights(self, step: int) -> dict[str, float]:
        return self.lfq.loss_weights(step)

    def _bound(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return z if self.norm is None else self.norm(z[..., None, :])[..., 0, :]

    def _digits(self, x: Float[Tensor, "*n d"]) -> Int[Tensor, "*n d"]:
        return (x > 0).long()

    def _basis(self, like: Tensor) -> Int[Tensor, " d"]:
        basis = super()._basis(like)
        return basis.flip(0) if self.lfq.bit_order == "msb" else basis

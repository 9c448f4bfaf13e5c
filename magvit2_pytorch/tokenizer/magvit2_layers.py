"""Layers of MAGVIT-v2: residual units, strided downsampling, adaptive norms.

Encoder and decoder first change the resolution and then, in the first residual unit of the new
level, the number of channels. So a layer is a resampling and the units after it: in the encoder
those of the lower resolution, in the decoder those of the higher one.
Source: MAGVIT-v2 (arXiv 2310.05737), figure 7.
"""

from dataclasses import dataclass, replace

from magvit2_pytorch.layers.conv import CausalConv3d
from magvit2_pytorch.layers.norm import LatentNorm
from magvit2_pytorch.layers.resample import upsample
from magvit2_pytorch.layers.residual import basic_residual_block
from magvit2_pytorch.layers.stateful import Chain, StatefulLayer
from magvit2_pytorch.tokenizer.layer_spec import Grid, LayerOptions, LayerSpec, register_layer


@register_layer("magvit2_residual")
@dataclass(frozen=True)
class Magvit2ResidualSpec(LayerSpec):
    """`num_units` residual units in the encoder and as many in the decoder."""

    num_units: int = 1

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        encoder, decoder = (
            Chain(residual_units(grid.dim, grid.dim, self.num_units, options)) for _ in range(2)
        )
        return encoder, decoder


@register_layer("magvit2_encoder_residual")
@dataclass(frozen=True)
class Magvit2EncoderResidualSpec(LayerSpec):
    """`num_units` residual units in the encoder, none in the decoder."""

    num_units: int = 1

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        return Chain(residual_units(grid.dim, grid.dim, self.num_units, options)), Chain(())


@register_layer("magvit2_decoder_residual")
@dataclass(frozen=True)
class Magvit2DecoderResidualSpec(LayerSpec):
    """An adaptive norm and `num_units` residual units in the decoder only."""

    num_units: int = 1

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        return Chain(()), Chain(adaptive_units(grid.dim, grid.dim, self.num_units, options))


@register_layer("magvit2_compress_space")
@dataclass(frozen=True)
class Magvit2CompressSpaceSpec(LayerSpec):
    """Halve height and width, then `num_units` residual units.

    The first unit changes the channels to `dim_out`, by default twice as many. The decoder doubles
    height and width; an adaptive norm and as many units follow.
    """

    dim_out: int | None = None
    num_units: int = 1

    time = 1

    def after(self, grid: Grid, options: LayerOptions) -> Grid:
        dim_out = self.dim_out or options.doubled(grid.dim)
        return replace(grid, dim=dim_out, space=grid.space * 2, time=grid.time * self.time)

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        dim, dim_out = grid.dim, self.after(grid, options).dim
        size = dict(kernel_size=options.kernel_size, pad_mode=options.pad_mode)
        down = CausalConv3d(dim, dim, stride=(self.time, 2, 2), **size)
        up = upsample(dim_out, dim_out, time=self.time, space=2, **size)
        return (
            Chain((down, *residual_units(dim, dim_out, self.num_units, options))),
            Chain((up, *adaptive_units(dim_out, dim, self.num_units, options))),
        )


@register_layer("magvit2_compress_space_time")
@dataclass(frozen=True)
class Magvit2CompressSpaceTimeSpec(Magvit2CompressSpaceSpec):
    """`magvit2_compress_space` that also halves the frame rate."""

    time = 2


def residual_units(
    dim: int, dim_out: int, num_units: int, options: LayerOptions
) -> list[StatefulLayer]:
    """Consecutive residual units; the first changes the number of channels."""
    return [
        basic_residual_block(
            dim if number == 0 else dim_out,
            dim_out,
            options.kernel_size,
            options.pad_mode,
            options.norm,
        )
        for number in range(num_units)
    ]


def adaptive_units(
    dim: int, dim_out: int, num_units: int, options: LayerOptions
) -> list[StatefulLayer]:
    """An adaptive norm, which reads the quantized latents, and `residual_units`."""
    assert options.quantized_dim is not None, "build_encoder_decoder sets it"
    norm = LatentNorm(dim, options.quantized_dim, options.norm)
    return [norm, *residual_units(dim, dim_out, num_units, options)]

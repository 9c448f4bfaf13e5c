"""MAGVIT-v2's own blocks as layers: wide residual units, strided and block-wise resampling.

Both towers change the grid first and the width afterwards, in the first unit of the new level, so a
layer here is a change of grid with the units behind it: those of the lower level on the way down,
those of the upper one on the way back. Source: MAGVIT-v2 (arXiv 2310.05737), figure 7.
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
    """`num_units` residual units in the encoder, and as many in the decoder."""

    num_units: int = 1

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        encoder, decoder = (
            Chain(units(grid.dim, grid.dim, self.num_units, options)) for _ in range(2)
        )
        return encoder, decoder


@register_layer("magvit2_encoder_residual")
@dataclass(frozen=True)
class Magvit2EncoderResidualSpec(LayerSpec):
    """`num_units` residual units in the encoder; the decoder has nothing in return."""

    num_units: int = 1

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        return Chain(units(grid.dim, grid.dim, self.num_units, options)), Chain(())


@register_layer("magvit2_decoder_residual")
@dataclass(frozen=True)
class Magvit2DecoderResidualSpec(LayerSpec):
    """An adaptive norm and `num_units` residual units in the decoder, none in the encoder."""

    num_units: int = 1

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        return Chain(()), Chain(steered_units(grid.dim, grid.dim, self.num_units, options))


@register_layer("magvit2_compress_space")
@dataclass(frozen=True)
class Magvit2CompressSpaceSpec(LayerSpec):
    """Halves height and width, then `num_units` residual units, the first to `dim_out` channels.

    The decoder doubles them again, an adaptive norm reads the latents, and as many units follow.
    """

    dim_out: int | None = None
    num_units: int = 1

    time = 1

    def after(self, grid: Grid, options: LayerOptions) -> Grid:
        dim_out = self.dim_out or options.wider(grid.dim)
        return replace(grid, dim=dim_out, space=grid.space * 2, time=grid.time * self.time)

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        dim, dim_out = grid.dim, self.after(grid, options).dim
        size = dict(kernel_size=options.kernel_size, pad_mode=options.pad_mode)
        down = CausalConv3d(dim, dim, stride=(self.time, 2, 2), **size)
        up = upsample(dim_out, dim_out, time=self.time, space=2, **size)
        return (
            Chain((down, *units(dim, dim_out, self.num_units, options))),
            Chain((up, *steered_units(dim_out, dim, self.num_units, options))),
        )


@register_layer("magvit2_compress_space_time")
@dataclass(frozen=True)
class Magvit2CompressSpaceTimeSpec(Magvit2CompressSpaceSpec):
    """Halves height, width and frame rate, with residual units as `magvit2_compress_space` has."""

    time = 2


def units(dim: int, dim_out: int, num: int, options: LayerOptions) -> list[StatefulLayer]:
    """Residual units in a row, the first of which changes the width."""
    return [
        basic_residual_block(
            dim if number == 0 else dim_out,
            dim_out,
            options.kernel_size,
            options.pad_mode,
            options.norm,
        )
        for number in range(num)
    ]


def steered_units(dim: int, dim_out: int, num: int, options: LayerOptions) -> list[StatefulLayer]:
    """The same behind a norm whose gain and shift come from the quantized latents."""
    assert options.quantized_dim is not None, "build_encoder_decoder fills it in"
    norm = LatentNorm(dim, options.quantized_dim, options.norm)
    return [norm, *units(dim, dim_out, num, options)]

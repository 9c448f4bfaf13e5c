"""Layer types that `layers` can name.

In MAGVIT-v2 (arXiv 2310.05737, figure 7), encoder and decoder first change the resolution and then,
in the first residual unit of the new level, the number of channels. So such a layer is a resampling
and the units after it.
"""

from abc import abstractmethod
from dataclasses import dataclass

from magvit2_pytorch.layers.attention import (
    GateLoop,
    LinearSpaceAttention,
    SpaceAttention,
    TimeAttention,
    transformer_block,
)
from magvit2_pytorch.layers.conv import CausalConv3d
from magvit2_pytorch.layers.norm import LatentNorm
from magvit2_pytorch.layers.resample import space_downsample, time_downsample, upsample
from magvit2_pytorch.layers.residual import (
    basic_residual_block,
    factorized_residual_block,
    residual_block,
)
from magvit2_pytorch.layers.stateful import Chain, StatefulLayer
from magvit2_pytorch.tokenizer.layer_spec import Grid, LayerOptions, LayerSpec, register_layer


class SameGrid(LayerSpec):
    """A layer that keeps the grid; the decoder has the same block."""

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        return self.block(grid, options), self.block(grid, options)

    @abstractmethod
    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        """A new block, for the encoder or the decoder."""

    def dim_cond(self, options: LayerOptions) -> int | None:
        """Width of the condition if this layer is conditional, else None."""
        return options.dim_cond if self.conditional else None


@register_layer("residual")
@dataclass(frozen=True)
class ResidualSpec(SameGrid):
    """A residual unit: a causal 3D convolution and a 1x1x1 convolution."""

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        return residual_block(
            grid.dim, options.kernel_size, options.pad_mode, self.dim_cond(options), options.norm
        )


@register_layer("consecutive_residual")
@dataclass(frozen=True)
class ConsecutiveResidualSpec(SameGrid):
    """`num_units` residual units in a row."""

    num_units: int = 1

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        return Chain(
            residual_block(grid.dim, options.kernel_size, options.pad_mode, norm=options.norm)
            for _ in range(self.num_units)
        )


@register_layer("factorized_residual")
@dataclass(frozen=True)
class FactorizedResidualSpec(LayerSpec):
    """Residual units with separate convolutions in space and in time.

    The encoder has `num_units`, the decoder `num_decoder_units` (default: as many). The
    convolution over space has groups of `group_width` channels (default: one group of all).
    """

    num_units: int = 1
    num_decoder_units: int | None = None
    group_width: int | None = None

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        decoder_units = self.num_units if self.num_decoder_units is None else self.num_decoder_units
        block = grid.dim, options.pad_mode, options.norm, self.group_width
        encoder, decoder = (
            Chain(factorized_residual_block(*block) for _ in range(count))
            for count in (self.num_units, decoder_units)
        )
        return encoder, decoder


@dataclass(frozen=True)
class CompressSpec(LayerSpec):
    """Base of layers that make the grid coarser, with twice the channels."""

    dim_out: int | None = None

    time = space = 1

    def after(self, grid: Grid, options: LayerOptions) -> Grid:
        dim_out = self.dim_out or options.doubled(grid.dim)
        return Grid(dim_out, grid.time * self.time, grid.space * self.space)

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        dim_out = self.after(grid, options).dim
        downsample = space_downsample if self.space > 1 else time_downsample
        down = downsample(grid.dim, dim_out, options.pad_mode)
        return down, upsample(dim_out, grid.dim, self.time, self.space)


@register_layer("compress_space")
class CompressSpaceSpec(CompressSpec):
    """Halve height and width; `dim_out` channels, by default twice as many."""

    space = 2


@register_layer("compress_time")
class CompressTimeSpec(CompressSpec):
    """Halve the frame rate; `dim_out` channels, by default twice as many."""

    time = 2
    one_frame_start = True


@register_layer("attend_space")
@dataclass(frozen=True)
class AttendSpaceSpec(SameGrid):
    """A transformer block over each frame, with axial rotary embeddings."""

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        mixer = SpaceAttention(grid.dim, options.attention)
        return transformer_block(grid.dim, mixer, self.dim_cond(options))


@register_layer("linear_attend_space")
@dataclass(frozen=True)
class LinearAttendSpaceSpec(SameGrid):
    """A transformer block over each frame, with linear attention."""

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        size = options.linear_attention
        mixer = LinearSpaceAttention(grid.dim, size.dim_head, size.heads)
        return transformer_block(grid.dim, mixer, self.dim_cond(options))


@register_layer("attend_time")
@dataclass(frozen=True)
class AttendTimeSpec(SameGrid):
    """A causal transformer block over the past of each cell.

    With `window`, attention reaches that many latent frames back.
    """

    window: int | None = None

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        mixer = TimeAttention(grid.dim, options.attention, self.window)
        return transformer_block(grid.dim, mixer, self.dim_cond(options), shift=True)


@register_layer("gateloop_time")
@dataclass(frozen=True)
class GateLoopTimeSpec(SameGrid):
    """A gated linear recurrence along time and a feed-forward block."""

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        return transformer_block(grid.dim, GateLoop(grid.dim), shift=True)


for _spec in (ResidualSpec, AttendSpaceSpec, LinearAttendSpaceSpec, AttendTimeSpec):
    # The same layer with a conditional norm.
    _attributes = {"conditional": True, "__doc__": f"`{_spec.name}` with a conditional norm."}
    register_layer(f"cond_{_spec.name}")(type(f"Cond{_spec.__name__}", (_spec,), _attributes))


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


@register_layer("magvit2_residual")
@dataclass(frozen=True)
class Magvit2ResidualSpec(LayerSpec):
    """`num_units` residual units in the encoder and as many in the decoder."""

    num_units: int = 1

    encoder_units = decoder_units = staticmethod(residual_units)

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        size = grid.dim, grid.dim, self.num_units, options
        return Chain(self.encoder_units(*size)), Chain(self.decoder_units(*size))


@register_layer("magvit2_encoder_residual")
class Magvit2EncoderResidualSpec(Magvit2ResidualSpec):
    """`num_units` residual units in the encoder, none in the decoder."""

    decoder_units = staticmethod(lambda *size: ())


@register_layer("magvit2_decoder_residual")
class Magvit2DecoderResidualSpec(Magvit2ResidualSpec):
    """An adaptive norm and `num_units` residual units in the decoder only."""

    one_frame_start = reads_latents = True
    encoder_units = staticmethod(lambda *size: ())
    decoder_units = staticmethod(adaptive_units)


@register_layer("magvit2_compress_space")
@dataclass(frozen=True)
class Magvit2CompressSpaceSpec(CompressSpec):
    """Halve height and width, then `num_units` residual units.

    The first unit changes the channels to `dim_out`, by default twice as many. The decoder doubles
    height and width; an adaptive norm and as many units follow.
    """

    num_units: int = 1

    space = 2
    one_frame_start = reads_latents = True

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
class Magvit2CompressSpaceTimeSpec(Magvit2CompressSpaceSpec):
    """`magvit2_compress_space` that also halves the frame rate."""

    time = 2

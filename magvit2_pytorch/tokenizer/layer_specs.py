"""Layers that users can name: one registered class each."""

from abc import abstractmethod
from dataclasses import dataclass, replace

from magvit2_pytorch.layers.attention import SpaceAttention, TimeAttention, transformer_block
from magvit2_pytorch.layers.gateloop import GateLoop
from magvit2_pytorch.layers.linear_attention import LinearSpaceAttention
from magvit2_pytorch.layers.resample import space_downsample, time_downsample, upsample
from magvit2_pytorch.layers.residual import factorized_residual_block, residual_block
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


@register_layer("cond_residual")
@dataclass(frozen=True)
class CondResidualSpec(ResidualSpec):
    """A residual unit with a conditional norm."""

    conditional = True


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

    The encoder has `num_units`, the decoder `num_decoder_units` (default: as many).
    """

    num_units: int = 1
    num_decoder_units: int | None = None

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        decoder_units = self.num_units if self.num_decoder_units is None else self.num_decoder_units
        encoder, decoder = (
            Chain(
                factorized_residual_block(grid.dim, options.pad_mode, options.norm)
                for _ in range(count)
            )
            for count in (self.num_units, decoder_units)
        )
        return encoder, decoder


@register_layer("compress_space")
@dataclass(frozen=True)
class CompressSpaceSpec(LayerSpec):
    """Halve height and width; `dim_out` channels, by default twice as many."""

    dim_out: int | None = None

    def after(self, grid: Grid, options: LayerOptions) -> Grid:
        return replace(grid, dim=self.dim_out or options.doubled(grid.dim), space=grid.space * 2)

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        dim_out = self.after(grid, options).dim
        return (
            space_downsample(grid.dim, dim_out, options.pad_mode),
            upsample(dim_out, grid.dim, space=2),
        )


@register_layer("compress_time")
@dataclass(frozen=True)
class CompressTimeSpec(LayerSpec):
    """Halve the frame rate; `dim_out` channels, by default twice as many."""

    dim_out: int | None = None

    def after(self, grid: Grid, options: LayerOptions) -> Grid:
        return replace(grid, dim=self.dim_out or options.doubled(grid.dim), time=grid.time * 2)

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        dim_out = self.after(grid, options).dim
        return (
            time_downsample(grid.dim, dim_out, options.pad_mode),
            upsample(dim_out, grid.dim, time=2),
        )


@register_layer("attend_space")
@dataclass(frozen=True)
class AttendSpaceSpec(SameGrid):
    """A transformer block over each frame, with axial rotary embeddings."""

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        mixer = SpaceAttention(grid.dim, options.attention)
        return transformer_block(grid.dim, mixer, self.dim_cond(options))


@register_layer("cond_attend_space")
@dataclass(frozen=True)
class CondAttendSpaceSpec(AttendSpaceSpec):
    """Space attention with a conditional norm."""

    conditional = True


@register_layer("linear_attend_space")
@dataclass(frozen=True)
class LinearAttendSpaceSpec(SameGrid):
    """A transformer block over each frame, with linear attention."""

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        size = options.linear_attention
        mixer = LinearSpaceAttention(grid.dim, size.dim_head, size.heads)
        return transformer_block(grid.dim, mixer, self.dim_cond(options))


@register_layer("cond_linear_attend_space")
@dataclass(frozen=True)
class CondLinearAttendSpaceSpec(LinearAttendSpaceSpec):
    """Linear space attention with a conditional norm."""

    conditional = True


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


@register_layer("cond_attend_time")
@dataclass(frozen=True)
class CondAttendTimeSpec(AttendTimeSpec):
    """Time attention with a conditional norm."""

    conditional = True


@register_layer("gateloop_time")
@dataclass(frozen=True)
class GateLoopTimeSpec(SameGrid):
    """A gated linear recurrence along time and a feed-forward block."""

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        return transformer_block(grid.dim, GateLoop(grid.dim), shift=True)

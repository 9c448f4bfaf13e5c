"""The layers a user can name. Adding one is adding a class here; tests walk the registry."""

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
    """A layer that leaves the grid as it is: the decoder has another of the same kind."""

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        return self.block(grid, options), self.block(grid, options)

    @abstractmethod
    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        """One of the two."""

    def dim_cond(self, options: LayerOptions) -> int | None:
        """The condition's width, for layers that take one."""
        return options.dim_cond if self.conditional else None


@register_layer("residual")
@dataclass(frozen=True)
class ResidualSpec(SameGrid):
    """A residual unit: a causal 3D convolution and a 1x1x1 one."""

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        return residual_block(
            grid.dim, options.kernel_size, options.pad_mode, self.dim_cond(options), options.norm
        )


@register_layer("cond_residual")
@dataclass(frozen=True)
class CondResidualSpec(ResidualSpec):
    """A residual unit whose norm is steered by the condition."""

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
    """`num_units` units of a convolution in space and one in time, `num_decoder_units` back."""

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
    """Halves height and width; `dim_out` channels, twice as many if not said."""

    dim_out: int | None = None

    def after(self, grid: Grid, options: LayerOptions) -> Grid:
        return replace(grid, dim=self.dim_out or options.wider(grid.dim), space=grid.space * 2)

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        dim_out = self.after(grid, options).dim
        return (
            space_downsample(grid.dim, dim_out, options.pad_mode),
            upsample(dim_out, grid.dim, space=2),
        )


@register_layer("compress_time")
@dataclass(frozen=True)
class CompressTimeSpec(LayerSpec):
    """Halves the frame rate; `dim_out` channels, twice as many if not said."""

    dim_out: int | None = None

    def after(self, grid: Grid, options: LayerOptions) -> Grid:
        return replace(grid, dim=self.dim_out or options.wider(grid.dim), time=grid.time * 2)

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        dim_out = self.after(grid, options).dim
        return (
            time_downsample(grid.dim, dim_out, options.pad_mode),
            upsample(dim_out, grid.dim, time=2),
        )


@register_layer("attend_space")
@dataclass(frozen=True)
class AttendSpaceSpec(SameGrid):
    """A transformer block over the cells of each frame, with axial rotary positions."""

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        mixer = SpaceAttention(grid.dim, options.attention)
        return transformer_block(grid.dim, mixer, self.dim_cond(options))


@register_layer("cond_attend_space")
@dataclass(frozen=True)
class CondAttendSpaceSpec(AttendSpaceSpec):
    """Space attention behind a norm steered by the condition."""

    conditional = True


@register_layer("linear_attend_space")
@dataclass(frozen=True)
class LinearAttendSpaceSpec(SameGrid):
    """A transformer block over the cells of each frame, at a cost linear in their number."""

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        size = options.linear_attention
        mixer = LinearSpaceAttention(grid.dim, size.dim_head, size.heads)
        return transformer_block(grid.dim, mixer, self.dim_cond(options))


@register_layer("cond_linear_attend_space")
@dataclass(frozen=True)
class CondLinearAttendSpaceSpec(LinearAttendSpaceSpec):
    """Linear space attention behind a norm steered by the condition."""

    conditional = True


@register_layer("attend_time")
@dataclass(frozen=True)
class AttendTimeSpec(SameGrid):
    """A causal transformer block over the past of each cell; `window` latent frames of it."""

    window: int | None = None

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        mixer = TimeAttention(grid.dim, options.attention, self.window)
        return transformer_block(grid.dim, mixer, self.dim_cond(options), shift=True)


@register_layer("cond_attend_time")
@dataclass(frozen=True)
class CondAttendTimeSpec(AttendTimeSpec):
    """Time attention behind a norm steered by the condition."""

    conditional = True


@register_layer("gateloop_time")
@dataclass(frozen=True)
class GateLoopTimeSpec(SameGrid):
    """A gated linear recurrence along time and a feed-forward."""

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        return transformer_block(grid.dim, GateLoop(grid.dim), shift=True)

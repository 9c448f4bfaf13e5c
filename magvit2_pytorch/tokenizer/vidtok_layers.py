"""Layers of VidTok: convolutions over space or time, mixed resampling.

Encoder and decoder of a VidTok network change the grid at different levels, and the decoder has
more units, so its layers are listed apart (`decoder_layers`); `vidtok_options` makes both lists.
Source: VidTok (arXiv 2412.13061), with the details of its published code.
"""

from dataclasses import dataclass, replace

from torch import nn

from magvit2_pytorch.layers.attention import AttentionSize, SpaceAttention
from magvit2_pytorch.layers.conv import CausalConv3d
from magvit2_pytorch.layers.resample import (
    DropFirstFrames,
    EndPaddedDownsample,
    LinearTimeUpsample,
    Mix,
    NearestUpsample,
    RepeatFirstFrame,
    TimeAverage,
)
from magvit2_pytorch.layers.residual import basic_residual_block
from magvit2_pytorch.layers.stateful import Chain, Residual, StatefulLayer
from magvit2_pytorch.tokenizer.layer_spec import Grid, LayerOptions, LayerSpec, register_layer
from magvit2_pytorch.tokenizer.layer_types import SameGrid


def biased_block(
    dim: int, dim_out: int, kernel_size: int | tuple[int, int, int], options: LayerOptions
) -> Residual:
    """A residual block of two convolutions with biases."""
    return basic_residual_block(
        dim, dim_out, kernel_size, options.pad_mode, options.norm, bias=True
    )


@register_layer("vidtok_residual")
@dataclass(frozen=True)
class VidTokResidualSpec(LayerSpec):
    """`num_units` residual blocks over space, each followed by one over time.

    The first of them changes the channels to `dim_out`, by default as many as before.
    """

    dim_out: int | None = None
    num_units: int = 1

    def after(self, grid: Grid, options: LayerOptions) -> Grid:
        return replace(grid, dim=self.dim_out or grid.dim)

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        dim_out = self.after(grid, options).dim
        return self._units(grid.dim, dim_out, options), self._units(dim_out, grid.dim, options)

    def _units(self, dim: int, dim_out: int, options: LayerOptions) -> StatefulLayer:
        blocks = []
        for number in range(self.num_units):
            dim_in = dim if number == 0 else dim_out
            time = biased_block(dim_out, dim_out, (3, 1, 1), options)
            # As published: the network starts as an image model.
            last_conv = time.layer.layers[-1].conv
            nn.init.zeros_(last_conv.weight)
            nn.init.zeros_(last_conv.bias)
            blocks += [biased_block(dim_in, dim_out, (1, 3, 3), options), time]
        return Chain(blocks)


@register_layer("vidtok_middle")
@dataclass(frozen=True)
class VidTokMiddleSpec(SameGrid):
    """A causal residual block, attention within each frame, another block."""

    def block(self, grid: Grid, options: LayerOptions) -> StatefulLayer:
        one_head = AttentionSize(grid.dim, heads=1, dropout=options.attention.dropout)
        attention = SpaceAttention(grid.dim, one_head, rotary=False, bias=True)
        return Chain(
            (
                biased_block(grid.dim, grid.dim, 3, options),
                Residual(Chain((options.norm.layer(grid.dim), attention))),
                biased_block(grid.dim, grid.dim, 3, options),
            )
        )


@register_layer("vidtok_compress_space")
@dataclass(frozen=True)
class VidTokCompressSpaceSpec(LayerSpec):
    """Halve height and width, padded at the end; the decoder repeats pixels."""

    def after(self, grid: Grid, options: LayerOptions) -> Grid:
        return replace(grid, space=grid.space * 2)

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        conv = CausalConv3d(grid.dim, grid.dim, (1, 3, 3), pad_mode=options.pad_mode)
        return EndPaddedDownsample(grid.dim), Chain((NearestUpsample(space=2), conv))


@register_layer("vidtok_compress_time")
@dataclass(frozen=True)
class VidTokCompressTimeSpec(LayerSpec):
    """Halves the frame rate: mean, or repetition, mixed with a convolution."""

    def after(self, grid: Grid, options: LayerOptions) -> Grid:
        return replace(grid, time=grid.time * 2)

    def build(self, grid: Grid, options: LayerOptions) -> tuple[StatefulLayer, StatefulLayer]:
        num_first = options.first_cells(self.after(grid, options))
        # Without `repeat_first_frame` the first latent has one frame at every level.
        num_missing = num_first * 2 - options.first_cells(grid)
        size = dict(dim=grid.dim, dim_out=grid.dim, kernel_size=3, pad_mode=options.pad_mode)
        down = Mix(
            TimeAverage(options.pad_mode), CausalConv3d(**size, stride=(2, 1, 1), time_pad=1)
        )
        up = Mix(Chain(()), CausalConv3d(**size))
        return (
            Chain((RepeatFirstFrame(num_missing), down)),
            Chain((self.doubling(num_first), up, DropFirstFrames(num_missing))),
        )

    def doubling(self, num_first: int) -> StatefulLayer:
        """Doubles the frames; the first latent has `num_first` of them."""
        return NearestUpsample(time=2)


@register_layer("vidtok_compress_time_linear")
@dataclass(frozen=True)
class VidTokCompressTimeLinearSpec(VidTokCompressTimeSpec):
    """`vidtok_compress_time` whose decoder interpolates frames, looking one ahead."""

    def look_ahead(self, grid: Grid) -> int:
        return grid.time

    def doubling(self, num_first: int) -> StatefulLayer:
        return LinearTimeUpsample(num_first)

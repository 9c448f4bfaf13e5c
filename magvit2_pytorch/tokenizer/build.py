"""Builds encoder and decoder from a configuration."""

from dataclasses import replace

import torch
from torch import nn

from magvit2_pytorch.layers.conv import CausalConv3d, PadMode, Triple, triple
from magvit2_pytorch.layers.norm import NormSpec
from magvit2_pytorch.layers.resample import DepthToSpace, SpaceToDepth
from magvit2_pytorch.layers.stateful import Chain, Pointwise, ReceptiveField, StatefulLayer
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
from magvit2_pytorch.types import Context, Past

Patch = tuple[int, int]


class SeparateFirstFrame(StatefulLayer):
    """Two layers: `first` gives the first output frame, `rest` all later ones.

    `rest` also reads the first input frame, as the past of the second.
    """

    def __init__(self, rest: StatefulLayer, first: StatefulLayer):
        super().__init__()
        self.rest, self.first = rest, first

    def forward(self, x, past: Past = None, context: Context = Context()):
        if past is not None:
            return self.rest(x, past, context)
        first, _ = self.first(x[:, :, :1], None, context)
        out, past = self.rest(x, None, context)
        return torch.cat((first, out[:, :, 1:]), dim=2), past

    @property
    def receptive_field(self) -> ReceptiveField | None:
        return self.rest.receptive_field  # `first` has the same kernel in space


def input_layer(
    channels: int,
    dim: int,
    kernel: int | Triple,
    patch: Patch = (1, 1),
    pad_mode: PadMode = "constant",
    separate_first_frame: bool = False,
) -> StatefulLayer:
    """Patches of (frames, pixels to a side), then the first convolution."""

    def layer(time: int, space: int, kernel: int | Triple) -> StatefulLayer:
        conv = CausalConv3d(channels * time * space**2, dim, kernel, pad_mode=pad_mode)
        return conv if time * space == 1 else Chain((SpaceToDepth(time, space), conv))

    rest = layer(*patch, kernel)
    if not separate_first_frame:
        return rest
    return SeparateFirstFrame(rest, layer(1, patch[1], (1, *triple(kernel)[1:])))


def output_layer(
    dim: int,
    channels: int,
    kernel: int | Triple,
    patch: Patch = (1, 1),
    pad_mode: PadMode = "constant",
    separate_first_frame: bool = False,
    norm: NormSpec = NormSpec(),
) -> StatefulLayer:
    """NormSpec, activation, last convolution, patches to pixels; the output is linear."""

    def layer(time: int, space: int, kernel: int | Triple) -> StatefulLayer:
        conv = CausalConv3d(dim, channels * time * space**2, kernel, pad_mode=pad_mode)
        return conv if time * space == 1 else Chain((conv, DepthToSpace(time, space)))

    last = layer(*patch, kernel)
    if separate_first_frame:
        last = SeparateFirstFrame(last, layer(1, patch[1], (1, *triple(kernel)[1:])))
    return Chain((norm.layer(dim), Pointwise(nn.SiLU()), last))


def build_encoder_decoder(
    config: TokenizerConfig, latent_dim: int, quantized_dim: int
) -> tuple[Chain, Chain]:
    """Encoder from pixels to `latent_dim` channels, decoder from `quantized_dim`."""
    options = replace(config.layer_options, quantized_dim=quantized_dim)
    grids = config.grids
    encoder_layers, decoder_layers = [], []
    for spec, grid in zip(config.layer_specs, grids[:-1], strict=True):
        encoder_layer, decoder_layer = spec.build(grid, options)
        encoder_layers.append(encoder_layer)
        decoder_layers.insert(0, decoder_layer)

    pixel_options = dict(
        patch=config.patch,
        pad_mode=config.pad_mode,
        separate_first_frame=config.separate_first_frame_encoding,
    )
    first, last = grids[0].dim, grids[-1].dim
    encoder = Chain(
        (
            input_layer(config.channels, first, config.input_conv_kernel_size, **pixel_options),
            *encoder_layers,
            options.norm.layer(last),
            Pointwise(nn.SiLU()),
            CausalConv3d(last, latent_dim, 1),
        )
    )
    decoder = Chain(
        (
            CausalConv3d(
                quantized_dim, last, config.latent_conv_kernel_size, pad_mode=config.pad_mode
            ),
            *decoder_layers,
            output_layer(
                first,
                config.channels,
                config.output_conv_kernel_size,
                norm=options.norm,
                **pixel_options,
            ),
        )
    )
    return encoder, decoder

"""Builds encoder and decoder from a configuration."""

from dataclasses import replace

import torch
from torch import nn

from magvit2_pytorch.layers.conv import CausalConv3d, PadMode, Triple, triple
from magvit2_pytorch.layers.norm import NormSpec
from magvit2_pytorch.layers.resample import (
    DepthToSpace,
    DropFirstFrames,
    LappedFilter,
    RepeatFirstFrame,
    SpaceToDepth,
)
from magvit2_pytorch.layers.stateful import Chain, Pointwise, StatefulLayer
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
from magvit2_pytorch.types import Context, Past


class SeparateFirstFrame(StatefulLayer):
    """Two layers: `first` gives the first output frame, `rest` the others."""

    def __init__(self, rest: StatefulLayer, first: StatefulLayer):
        super().__init__()
        self.rest, self.first = rest, first
        self.receptive_field = rest.receptive_field  # `first` has the same kernel in space

    def forward(self, x, past: Past = None, context: Context = Context()):
        if past is not None:
            return self.rest(x, past, context)
        first, _ = self.first(x[:, :, :1], None, context)
        out, past = self.rest(x, None, context)
        return torch.cat((first, out[:, :, 1:]), dim=2), past


def input_layer(
    channels: int,
    dim: int,
    kernel: int | Triple,
    patch: tuple[int, int] = (1, 1),
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
    patch: tuple[int, int] = (1, 1),
    pad_mode: PadMode = "constant",
    separate_first_frame: bool = False,
    norm: NormSpec | None = NormSpec(),
) -> StatefulLayer:
    """Norm and activation unless `norm` is None, last convolution, patches to pixels."""

    def layer(time: int, space: int, kernel: int | Triple) -> StatefulLayer:
        conv = CausalConv3d(dim, channels * time * space**2, kernel, pad_mode=pad_mode)
        return conv if time * space == 1 else Chain((conv, DepthToSpace(time, space)))

    last = layer(*patch, kernel)
    if separate_first_frame:
        last = SeparateFirstFrame(last, layer(1, patch[1], (1, *triple(kernel)[1:])))
    return Chain((*activated(dim, norm), last))


def activated(dim: int, norm: NormSpec | None) -> tuple[StatefulLayer, ...]:
    """Norm and activation; nothing if `norm` is None."""
    return () if norm is None else (norm.layer(dim), Pointwise(nn.SiLU()))


def build_encoder_decoder(
    config: TokenizerConfig, latent_dim: int, quantized_dim: int
) -> tuple[Chain, Chain]:
    """Encoder from pixels to `latent_dim` channels, decoder from `quantized_dim`."""
    num_copies = config.time_factor - 1 if config.repeat_first_frame else 0
    options = replace(
        config.layer_options, quantized_dim=quantized_dim, first_frames=1 + num_copies
    )
    grids, decoder_grids = config.grids, config.decoder_grids
    pairs = [s.build(g, options) for s, g in zip(config.layer_specs, grids[:-1], strict=True)]
    encoder_layers, decoder_layers = zip(*pairs, strict=True) if pairs else ((), ())
    if config.decoder_layers is not None:
        specs = zip(config.decoder_layer_specs, decoder_grids[:-1], strict=True)
        decoder_layers = [spec.build(grid, options)[1] for spec, grid in specs]

    pixel_options = dict(
        patch=config.patch,
        pad_mode=config.pad_mode,
        separate_first_frame=config.separate_first_frame_encoding,
    )
    first, last = grids[0].dim, grids[-1].dim
    stem = input_layer(config.channels, first, config.input_conv_kernel_size, **pixel_options)
    padding, kernel = dict(pad_mode=config.pad_mode), config.last_encoder_conv_kernel_size
    to_latents = CausalConv3d(last, latent_dim, kernel, **padding)
    dim, kernel = decoder_grids[-1].dim, config.latent_conv_kernel_size
    from_latents = CausalConv3d(quantized_dim, dim, kernel, **padding)
    output_norm = options.norm if config.output_norm else None
    pixel_options["norm"] = output_norm
    head = output_layer(first, config.channels, config.output_conv_kernel_size, **pixel_options)
    if config.lapped_patches:
        head = Chain((head, LappedFilter(config.patch[1])))
    if config.repeat_first_frame:
        stem = Chain((RepeatFirstFrame(num_copies), stem))
        head = Chain((head, DropFirstFrames(num_copies)))
    encoder = Chain((stem, *encoder_layers, *activated(last, output_norm), to_latents))
    decoder = Chain((from_latents, *reversed(decoder_layers), head))
    return encoder, decoder

"""Encoder and decoder, built from the same layer specs."""

from dataclasses import replace

from torch import nn

from magvit2_pytorch.layers.conv import CausalConv3d
from magvit2_pytorch.layers.stateful import Chain, Pointwise
from magvit2_pytorch.tokenizer.config import TokenizerConfig
from magvit2_pytorch.tokenizer.stem import input_layer, output_layer


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

"""The two towers: encoder and decoder, built from the same layer specs."""

from dataclasses import replace

from torch import nn

from magvit2_pytorch.layers.conv import CausalConv3d
from magvit2_pytorch.layers.stateful import Chain, Pointwise
from magvit2_pytorch.tokenizer.config import TokenizerConfig
from magvit2_pytorch.tokenizer.stem import input_stem, output_stem


def build_encoder_decoder(
    config: TokenizerConfig, latent_dim: int, quantized_dim: int
) -> tuple[Chain, Chain]:
    """Encoder from pixels to `latent_dim` channels, decoder from `quantized_dim` to pixels."""
    options = replace(config.layer_options, quantized_dim=quantized_dim)
    grids = config.grids
    down, up = [], []
    for spec, grid in zip(config.layer_specs, grids[:-1], strict=True):
        encoder_layer, decoder_layer = spec.build(grid, options)
        down.append(encoder_layer)
        up.insert(0, decoder_layer)

    stem = dict(
        patch=config.patch,
        pad_mode=config.pad_mode,
        first_apart=config.separate_first_frame_encoding,
    )
    first, last = grids[0].dim, grids[-1].dim
    encoder = Chain(
        (
            input_stem(config.channels, first, config.input_conv_kernel_size, **stem),
            *down,
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
            *up,
            output_stem(
                first, config.channels, config.output_conv_kernel_size, norm=options.norm, **stem
            ),
        )
    )
    return encoder, decoder

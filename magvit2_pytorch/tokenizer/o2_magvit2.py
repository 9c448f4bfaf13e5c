"""Names of O2-MAGVIT2's tensors for the network that `magvit2_options` describes.

In the encoder levels count from pixels to latents, in the decoder from latents to pixels (called
stages here). Image models have the same names, without the suffix `.conv` of convolutions.
Source: the code and the checkpoints of github.com/cofe-ai/O2-MAGVIT2.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

from torch import nn

from magvit2_pytorch.layers.conv import CausalConv3d
from magvit2_pytorch.layers.norm import LatentNorm
from magvit2_pytorch.layers.stateful import Chain, Residual, StatefulLayer
from magvit2_pytorch.state_file import Tensors
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.presets import magvit2_options

NUM_GROUPS = 32
FIRST_CONV = "encoder.conv_first"
LAST_CONV = "encoder.conv_last"
UNIT = "{}.res_blocks.res_block_{}.res_block_{}_{}"
DOWN = "encoder.conv_downsample_blocks.conv_downsample_{}"
FINAL_UNIT = UNIT.format("encoder", "final", "final", "{}")
PRE_UNIT = UNIT.format("decoder", "pre", "pre", "{}")
UP = "decoder.conv_upsample_blocks.conv_upsample_{}.conv1"

NamedLayers = Iterator[tuple[StatefulLayer, str]]
"""Layers with weights, each with its name in O2-MAGVIT2."""


def options_from_shapes(state: Tensors) -> dict[str, Any]:
    """Options of the tokenizer with these weights, read from their shapes.

    Two options do not show in shapes: group norms are taken to have 32 groups, as all have in
    O2-MAGVIT2, and the image size to give 16 x 16 latents. Raises `ValueError` if the weights fit
    no tokenizer.
    """
    is_video = has_time(state)
    init_dim, channels = _dims(state, FIRST_CONV)
    num_levels = 1 + _count(state, DOWN)
    first_units = [UNIT.format("encoder", level, level, 0) for level in range(num_levels)]
    widths = [_dims(state, f"{unit}.conv_0")[0] for unit in first_units]
    bits, _ = _dims(state, LAST_CONV)
    num_units, num_decoder_units = _count(state, FINAL_UNIT), _count(state, PRE_UNIT)
    if num_units != num_decoder_units:
        raise ValueError(
            f"its encoder has {num_units} residual units per level and its decoder "
            f"{num_decoder_units}: they must be equal"
        )
    if widths[0] != init_dim or any(w % init_dim or w % NUM_GROUPS for w in widths):
        raise ValueError(
            f"its levels have {widths} channels: all must be multiples of {NUM_GROUPS} and of the "
            f"first convolution's {init_dim}, and the first must equal {init_dim}"
        )
    return magvit2_options(
        init_dim,
        dim_mults=tuple(width // init_dim for width in widths),
        # The first stage of the decoder undoes the last step of the encoder.
        halve_time=tuple(
            _time_stride(state, stage) == 2 for stage in reversed(range(num_levels - 1))
        ),
        num_units=num_units,
        kernel_size=3 if is_video else (1, 3, 3),
    ) | dict(
        channels=channels,
        image_size=16 * 2 ** (num_levels - 1),
        codebook_size=2**bits,
        lfq_entropy_eps=1e-5,
    )


def name_table(tokenizer: VideoTokenizer, state: Tensors) -> dict[str, tuple[str, ...]]:
    """Parameter names of the tokenizer and the tensors to concatenate for each.

    `state` only decides between variants of the names.
    """
    # Their encoder names all units of a level, except the first, as if they were of level 0. Files
    # with corrected names are accepted too.
    is_corrected = _count(state, UNIT.format("encoder", 1, 1, "{}")) > 1
    names = {module: name for name, module in tokenizer.named_modules()}
    table = {}
    encoder = _encoder(tokenizer.encoder, is_corrected)
    for layer, name in (*encoder, *_decoder(tokenizer.decoder)):
        module, their_names = _weights(layer, name, _conv_suffix(state))
        for kind, _ in module.named_parameters():
            table[f"{names[module]}.{kind}"] = tuple(f"{n}.{kind}" for n in their_names)
    return table


def has_time(state: Tensors) -> bool:
    """True for a video model, False for an image model."""
    return any(name.startswith(f"{FIRST_CONV}.conv.") for name in state)


def _encoder(encoder: Chain, is_corrected: bool) -> NamedLayers:
    # The skipped layers have no weights: an activation, and an entry of `layers` for the decoder.
    first, *levels, _, final, norm, _, last = encoder.layers
    yield first, FIRST_CONV
    for level, chain in enumerate(levels):
        layers = list(chain.layers)
        if level > 0:
            yield layers.pop(0), DOWN.format(level - 1)
        for number, unit in enumerate(layers):
            their_level = level if number == 0 or is_corrected else 0
            yield from _unit(unit, UNIT.format("encoder", level, their_level, number))
    for number, unit in enumerate(final.layers):
        yield from _unit(unit, FINAL_UNIT.format(number))
    yield norm, "encoder.final_norm"
    yield last, LAST_CONV


def _decoder(decoder: Chain) -> NamedLayers:
    first, pre, *stages, _, out = decoder.layers
    norm, _, last = out.layers
    yield first, "decoder.conv_first"
    for number, unit in enumerate(pre.layers):
        yield from _unit(unit, PRE_UNIT.format(number))
    for stage, chain in enumerate(stages):
        layers = list(chain.layers)
        if stage > 0:
            yield layers.pop(0).layers[0], UP.format(stage - 1)
        yield layers.pop(0), f"decoder.cond_norm_layers.cond_norm_{stage}"
        for number, unit in enumerate(layers):
            yield from _unit(unit, UNIT.format("decoder", stage, stage, number))
    yield norm, "decoder.final_norm"
    yield last, "decoder.conv_last"


def _unit(unit: Residual, name: str) -> NamedLayers:
    norm_0, _, conv_0, norm_1, _, conv_1 = unit.layer.layers
    yield norm_0, f"{name}.norm_0"
    yield conv_0, f"{name}.conv_0"
    yield norm_1, f"{name}.norm_1"
    yield conv_1, f"{name}.conv_1"
    if unit.shortcut is not None:
        yield unit.shortcut, f"{name}.conv_shortcut"


def _weights(layer: StatefulLayer, name: str, suffix: str) -> tuple[nn.Module, tuple[str, ...]]:
    """The module with a layer's weights, and the names of its counterparts."""
    if isinstance(layer, CausalConv3d):
        return layer.conv, (f"{name}{suffix}",)
    if isinstance(layer, LatentNorm):
        return layer.to_gamma_beta, (f"{name}.gamma", f"{name}.beta")
    return layer.module.norm, (f"{name}.norm_fn",)


def _conv_suffix(state: Tensors) -> str:
    return ".conv" if has_time(state) else ""


def _dims(state: Tensors, conv: str) -> tuple[int, int]:
    """Output and input channels of a convolution."""
    name = f"{conv}{_conv_suffix(state)}.weight"
    if name not in state:
        raise ValueError(f"it lacks {name}")
    shape = tuple(state[name].shape)
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"{name} has shape {shape}, which is not that of a convolution")
    return shape[:2]


def _count(state: Tensors, name: str) -> int:
    """The number of modules with a numbered name, counted from 0."""
    starts = (f"{name.format(number)}." for number in count())
    return next(n for n, start in enumerate(starts) if not any(k.startswith(start) for k in state))


def _time_stride(state: Tensors, stage: int) -> int:
    name = UP.format(stage)
    dim_out, dim = _dims(state, name)
    stride = dim_out // (4 * dim)
    if dim_out != 4 * dim * stride or not 1 <= stride <= 1 + has_time(state):
        raise ValueError(
            f"{name} has {dim_out} output channels for {dim} input channels: 4 times as many "
            "upsample space, 8 times as many space and time"
        )
    return stride

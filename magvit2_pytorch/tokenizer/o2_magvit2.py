"""What O2-MAGVIT2 calls the parts of the network that `magvit2_options` describes.

Its levels count from pixels to latents in the encoder and back in the decoder, where they are
called stages here. Image models have the same names, but for the child `.conv` of convolutions.
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
FIRST = "encoder.conv_first"
LAST = "encoder.conv_last"
UNIT = "{}.res_blocks.res_block_{}.res_block_{}_{}"
DOWN = "encoder.conv_downsample_blocks.conv_downsample_{}"
FINAL = UNIT.format("encoder", "final", "final", "{}")
PRE = UNIT.format("decoder", "pre", "pre", "{}")
UP = "decoder.conv_upsample_blocks.conv_upsample_{}.conv1"

Named = Iterator[tuple[StatefulLayer, str]]
"""Layers that have weights, each with its name there."""


def options_from_shapes(state: Tensors) -> dict[str, Any]:
    """The options of the tokenizer that these tensors are the weights of.

    Group norms are taken to have 32 groups, as all have there, and the image size to give 16 x 16
    latents: neither shows. Raises `ValueError` where no such tokenizer can be.
    """
    is_video = has_time(state)
    init_dim, channels = _dims(state, FIRST)
    num_levels = 1 + _count(state, DOWN)
    first_units = [UNIT.format("encoder", level, level, 0) for level in range(num_levels)]
    widths = [_dims(state, f"{unit}.conv_0")[0] for unit in first_units]
    bits, _ = _dims(state, LAST)
    num_units, num_decoder_units = _count(state, FINAL), _count(state, PRE)
    if num_units != num_decoder_units:
        raise ValueError(
            f"its encoder has {num_units} residual units a level and its decoder "
            f"{num_decoder_units}: a tokenizer here has as many in both"
        )
    if widths[0] != init_dim or any(w % init_dim or w % NUM_GROUPS for w in widths):
        raise ValueError(
            f"its levels have {widths} channels: all should be multiples of {NUM_GROUPS} and of "
            f"the first convolution's {init_dim}, the first level as wide as that"
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
    """For each parameter of the tokenizer the tensor, or the two one after the other, that it is.

    `state` decides between spellings only.
    """
    # Their encoder calls all units of a level but the first those of level 0. A file that someone
    # put right is as good.
    put_right = _count(state, UNIT.format("encoder", 1, 1, "{}")) > 1
    names = {module: name for name, module in tokenizer.named_modules()}
    table = {}
    for layer, theirs in (*_encoder(tokenizer.encoder, put_right), *_decoder(tokenizer.decoder)):
        module, parts = _weights(layer, theirs, _child(state))
        for kind, _ in module.named_parameters():
            table[f"{names[module]}.{kind}"] = tuple(f"{part}.{kind}" for part in parts)
    return table


def has_time(state: Tensors) -> bool:
    """Whether it is a video model: one for images has no third axis."""
    return any(name.startswith(f"{FIRST}.conv.") for name in state)


def _encoder(encoder: Chain, put_right: bool) -> Named:
    # The layer without a name is the decoder's alone, as is one in `_decoder` the encoder's.
    first, *levels, _, final, norm, _, last = encoder.layers
    yield first, FIRST
    for level, chain in enumerate(levels):
        layers = list(chain.layers)
        if level > 0:
            yield layers.pop(0), DOWN.format(level - 1)
        for number, unit in enumerate(layers):
            said = level if number == 0 or put_right else 0
            yield from _unit(unit, UNIT.format("encoder", level, said, number))
    for number, unit in enumerate(final.layers):
        yield from _unit(unit, FINAL.format(number))
    yield norm, "encoder.final_norm"
    yield last, LAST


def _decoder(decoder: Chain) -> Named:
    first, pre, *stages, _, out = decoder.layers
    norm, _, last = out.layers
    yield first, "decoder.conv_first"
    for number, unit in enumerate(pre.layers):
        yield from _unit(unit, PRE.format(number))
    for stage, chain in enumerate(stages):
        layers = list(chain.layers)
        if stage > 0:
            yield layers.pop(0).layers[0], UP.format(stage - 1)
        yield layers.pop(0), f"decoder.cond_norm_layers.cond_norm_{stage}"
        for number, unit in enumerate(layers):
            yield from _unit(unit, UNIT.format("decoder", stage, stage, number))
    yield norm, "decoder.final_norm"
    yield last, "decoder.conv_last"


def _unit(unit: Residual, name: str) -> Named:
    norm_0, _, conv_0, norm_1, _, conv_1 = unit.layer.layers
    yield norm_0, f"{name}.norm_0"
    yield conv_0, f"{name}.conv_0"
    yield norm_1, f"{name}.norm_1"
    yield conv_1, f"{name}.conv_1"
    if unit.shortcut is not None:
        yield unit.shortcut, f"{name}.conv_shortcut"


def _weights(layer: StatefulLayer, name: str, child: str) -> tuple[nn.Module, tuple[str, ...]]:
    """The module that holds a layer's weights, and the names of those that hold them there."""
    if isinstance(layer, CausalConv3d):
        return layer.conv, (f"{name}{child}",)
    if isinstance(layer, LatentNorm):
        return layer.to_gamma_beta, (f"{name}.gamma", f"{name}.beta")
    return layer.module.norm, (f"{name}.norm_fn",)


def _child(state: Tensors) -> str:
    return ".conv" if has_time(state) else ""


def _dims(state: Tensors, conv: str) -> tuple[int, int]:
    """Channels that come out of a convolution, and that go in."""
    name = f"{conv}{_child(state)}.weight"
    if name not in state:
        raise ValueError(f"it lacks {name}")
    shape = tuple(state[name].shape)
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"{name} is {shape}, which is no convolution's")
    return shape[:2]


def _count(state: Tensors, name: str) -> int:
    """How many modules there are of a name with a number in it, from 0 on."""
    starts = (f"{name.format(number)}." for number in count())
    return next(n for n, start in enumerate(starts) if not any(k.startswith(start) for k in state))


def _time_stride(state: Tensors, stage: int) -> int:
    name = UP.format(stage)
    out, dim = _dims(state, name)
    stride = out // (4 * dim)
    if out != 4 * dim * stride or not 1 <= stride <= 1 + has_time(state):
        raise ValueError(
            f"{name} makes {out} channels of {dim}: 4 times as many merge space, 8 times as many "
            "space and time"
        )
    return stride

"""O2-MAGVIT2's networks: options from shapes, and tables of their names and ours."""

from collections.abc import Iterator
from itertools import count
from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor, nn

from magvit2_pytorch.discriminators.models import FrameDiscriminator, VideoDiscriminator
from magvit2_pytorch.layers.conv import CausalConv3d
from magvit2_pytorch.layers.norm import LatentNorm
from magvit2_pytorch.layers.stateful import Chain, Residual, StatefulLayer
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.presets import magvit2_options
from magvit2_pytorch.weights import Tensors, mismatches

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


NAMES = {
    "network.stem": "conv_in",
    "network.conv_out": "conv_out",
    "network.head.to_logit.0": "linear0",
    "network.head.to_logit.2": "linear1",
}
BLOCK_NAMES = {"conv_in": "conv1", "shortcut": "conv2", "conv_out": "conv3"}
"""Names of our layers in O2-MAGVIT2: in the network, and in each of its `res_blocks`."""

NUM_FRAMES = 17
"""Frames of the training clips in the configurations of O2-MAGVIT2."""


def convert_discriminator(
    state: Tensors, input_size: tuple[int, ...] | None = None
) -> FrameDiscriminator | VideoDiscriminator:
    """Builds a discriminator with head "fixed" from the tensors of O2-MAGVIT2.

    `input_size` is the size it was trained on, (frames, height, width) or, for images, (height,
    width). If not given, a square is assumed: of all sizes that fit the weights of the head, the
    one with the largest side, and 17 frames, or the fewest if 17 do not fit. Raises `ValueError`
    if a tensor is missing, unexpected or of a wrong shape.
    """
    dim, channels, *kernel = _shape(state, "conv_in.weight")
    num_blocks = len({name.split(".")[1] for name in state if name.startswith("res_blocks.")})
    dims = [_shape(state, f"res_blocks.{k}.conv3.weight")[0] for k in range(num_blocks)]
    are_multiples = dims and all(dim and dim_out and dim_out % dim == 0 for dim_out in dims)
    if len(kernel) not in (2, 3) or not are_multiples:
        raise ValueError(
            f"a first convolution of {(dim, channels, *kernel)} and blocks of {dims} channels are "
            "not those of a discriminator of O2-MAGVIT2"
        )
    num_positions = _shape(state, "linear0.weight")[1] // dims[-1]
    if input_size is None:
        input_size = _guess_size(num_positions, num_blocks, len(kernel))
    elif prod(-(-size // 2**num_blocks) for size in input_size) != num_positions:
        raise ValueError(
            f"input_size {input_size} does not fit: the head has weights for a map of "
            f"{num_positions} positions, and {num_blocks} blocks halve every side"
        )
    cls = VideoDiscriminator if len(kernel) == 3 else FrameDiscriminator
    # The initial weights are overwritten: do not advance the global random generator for them.
    with torch.random.fork_rng(devices=[]):
        discriminator = cls(
            channels=channels,
            dim=dim,
            dim_mults=tuple(dim_out // dim for dim_out in dims),
            head="fixed",
            input_size=input_size,
        )
    own = discriminator.state_dict()
    state = _without_blur(state, [dim, *dims], len(kernel))
    expected = {o2_name(name): tensor.shape for name, tensor in own.items()}
    if mismatch := mismatches(state, expected):
        raise ValueError(f"the discriminator {mismatch}")
    discriminator.load_state_dict({name: state[o2_name(name)].float() for name in own})
    return discriminator.eval()


def o2_name(name: str) -> str:
    """Name of one of our tensors in O2-MAGVIT2."""
    layer, parameter = name.rsplit(".", 1)
    if layer in NAMES:
        return f"{NAMES[layer]}.{parameter}"
    block, conv = layer.removeprefix("network.blocks.").split(".")
    return f"res_blocks.{block}.{BLOCK_NAMES[conv]}.{parameter}"


def _shape(state: Tensors, name: str) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"the discriminator lacks {name}")
    shape = tuple(state[name].shape)
    if len(shape) < 2:
        raise ValueError(f"{name} of the discriminator has shape {shape}: give 2 axes or more")
    return shape


def _guess_size(num_positions: int, num_blocks: int, num_axes: int) -> tuple[int, ...]:
    """Guesses the input size; each block halves a side n to ceil(n / 2)."""
    scale = 2**num_blocks
    sides = range(isqrt(num_positions), 0, -1)
    side = next((side for side in sides if num_positions % side**2 == 0), 0)
    if not side or (num_axes == 2 and side**2 != num_positions):
        raise ValueError(
            f"the head of the discriminator has weights for a map of {num_positions} positions, "
            "which is not a square: give the input_size it was trained on"
        )
    if num_axes == 2:
        return side * scale, side * scale
    frames = num_positions // side**2
    default_fits = -(-NUM_FRAMES // scale) == frames
    return NUM_FRAMES if default_fits else 1 + (frames - 1) * scale, side * scale, side * scale


def _without_blur(state: Tensors, dims: list[int], num_axes: int) -> Tensors:
    """Drops the blur filters, which are constants here; raises on other filters."""
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    expected: Tensor = torch.ones(())
    for _ in range(num_axes):
        expected = expected[..., None] * taps
    state = dict(state)
    for number, dim in enumerate(dims[:-1]):
        name = f"res_blocks.{number}.blur.filt"
        blur = state.pop(name, None)
        if blur is None:
            continue
        if blur.shape != (dim, 1, *expected.shape) or not bool((blur.float() == expected).all()):
            raise ValueError(
                f"{name} of the discriminator is not the filter [1, 2, 1] / 4, the only one that "
                "can be converted"
            )
    return state

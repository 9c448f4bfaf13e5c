"""VidTok: tables of names, and options from shapes and file names.

Three options do not show in shapes: `levels` are those of FSQ; `vidtok_version` is "1.0", whose
convolutions start with zeros, or "1.1", where copies of the first frame are before it; in
`interpolation_mode` "nearest" (by default in 1.0) or "trilinear" the decoder doubles frames. The
names of published files tell them all. Source: VidTok (arXiv 2412.13061) and its code.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from magvit2_pytorch.convert.project import (
    PROJECTS,
    SAME,
    Layout,
    Parts,
    Project,
    Row,
    Table,
    conv_shape,
    group_by_prefix,
    nested,
    numbered,
    renamed,
    without_axes,
)
from magvit2_pytorch.tokenizer.presets import vidtok_options
from magvit2_pytorch.weights import Tensors

MARK = "encoder.down_temporal."
"""Start of names that no other project is known to have."""
AVERAGE = "model_ema."
"""Prefix of averaged weights, whose names have lost their dots."""
PREFIXES = {
    "encoder.": "tokenizer",
    "decoder.": "tokenizer",
    "loss.discriminator.": "discriminator",
    "loss.perceptual_loss.": "perceptual loss (LPIPS)",
    "loss.": "other weights of the loss",
    "regularization.": "quantizer",
    AVERAGE: "averages of other modules",
}
PUBLISHED = re.compile(r"vidtok_(?:fsq|kl)_(causal|noncausal)_\d+_(\d+)(?:chn)?(_v1_1)?$")
"""Names of published files: causal or not, codes or channels, and the version."""


def matches(state: Tensors) -> bool:
    """True if the tensors have the names of a tokenizer of VidTok."""
    return any(name.startswith(MARK) for name in _uncompiled(state))


def split(state: Tensors) -> Parts:
    """Parts of a Lightning checkpoint, with averaged weights if it has them."""
    parts, unknown = group_by_prefix(_uncompiled(state), PREFIXES)
    tokenizer, averages = parts.pop("tokenizer"), parts["averages of other modules"]
    averaged = {name: AVERAGE + name.replace(".", "") for name in tokenizer}
    averaged = {name: average for name, average in averaged.items() if average in averages}
    tokenizer |= {name: averages.pop(average) for name, average in averaged.items()}
    counters = [averages.pop(AVERAGE + name, None) for name in ("decay", "num_updates")]
    unknown += [name for name in averages if not name.startswith(f"{AVERAGE}loss")]
    if "regularization.project_in.weight" in state:
        raise ValueError("a VidTok quantizer with projections cannot be converted")
    unused = _unused(tokenizer)
    left_out = {name: len(tensors) for name, tensors in parts.items()} | {
        "weights before averaging": len(averaged),
        "counters": sum(counter is not None for counter in counters),
        "upsampling that is not used": sum(name.startswith(unused) for name in tokenizer),
    }
    return Parts(tokenizer, {}, {name: num for name, num in left_out.items() if num}, unknown)


def config(
    state: Tensors,
    source: str,
    levels: str | Sequence[int] | None = None,
    vidtok_version: str | float | None = None,
    interpolation_mode: str | None = None,
) -> dict[str, Any]:
    """Options of the tokenizer with these weights, also by a published name."""
    if "encoder.conv_in.weight" in state:
        raise ValueError("it is a non-causal VidTok model: only causal ones can be converted")
    width, channels = conv_shape(state, "encoder.conv_in.conv.weight")[:2]
    dims = _dims(state)
    if dims[0] != width or any(dim % width for dim in dims):
        raise ValueError(
            f"its levels have {dims} channels: all must be multiples of the first convolution's "
            f"{width}, and the first must equal it"
        )
    z = conv_shape(state, "decoder.conv_in.conv.weight")[1]
    dim_out = conv_shape(state, "encoder.conv_out.conv.weight")[0]
    if dim_out not in (z, 2 * z):
        raise ValueError(
            f"its encoder has {dim_out} output channels and its decoder {z} input channels: as "
            "many are FSQ, twice as many are mean and variance"
        )
    published = PUBLISHED.search(Path(source).stem)
    if published and published[1] == "noncausal":
        raise ValueError("its name says noncausal: only causal VidTok models can be converted")
    if published:
        vidtok_version = vidtok_version or ("1.1" if published[3] else "1.0")
        if levels is None and int(published[2]) == 8**z:
            levels = (8,) * z
    is_continuous = dim_out == 2 * z
    if is_continuous and levels is not None:
        raise ValueError("its latents are continuous (KL): levels are for quantized ones")
    quantizer = dict(continuous_dim=z, use_kl=True) if is_continuous else _fsq(z, levels)
    vidtok_version = str(vidtok_version)
    if vidtok_version not in ("1.0", "1.1"):
        raise ValueError(
            f"vidtok_version is {vidtok_version}: give 1.0 or 1.1; names of published files of "
            "1.1 end in _v1_1"
        )
    default = {"1.0": "nearest", "1.1": "trilinear"}[vidtok_version]
    interpolation_mode = interpolation_mode or default
    if interpolation_mode not in ("nearest", "trilinear"):
        raise ValueError(f"interpolation_mode {interpolation_mode!r}: give nearest or trilinear")
    network = _network(state, dims, interpolation_mode == "trilinear", vidtok_version == "1.1")
    if "encoder.norm_out.weight" in state:
        network |= dict(norm="group")
    space_factor = 2 ** len(_with(state, "encoder.down.{}.downsample.conv"))
    return network | quantizer | dict(channels=channels, image_size=max(256, space_factor))


def names(state: Tensors) -> Table:
    """The table of a checkpoint: rows of each layer in order."""
    network = _network(state, _dims(state), linear=False, repeat_start=False)
    has_groups = "encoder.norm_out.weight" in state
    layers, decoder_layers = network["layers"], network["decoder_layers"]
    encoder = (
        Row("conv_in.conv", "0.layers.1.conv"),
        *_layer_rows(layers, "down", lambda index: index + 1),
        Row("norm_out.norm", "-3.module.norm"),
        Row("conv_out.conv", "-1.conv"),
    )
    decoder = (
        Row("conv_in.conv", "0.conv"),
        *_layer_rows(decoder_layers, "up", lambda index: len(decoder_layers) - index),
        Row("norm_out.norm", "-1.layers.0.layers.0.module.norm"),
        Row("conv_out.conv", "-1.layers.0.layers.2.conv"),
    )
    table = (
        *nested("encoder", "encoder.layers", encoder),
        *nested("decoder", "decoder.layers", decoder),
        *(Row(name, None) for name in _unused(state)),
    )
    return renamed(table, lambda name: name.removesuffix(".norm")) if has_groups else table


PROJECTS.register("vidtok")(
    Project(
        "VidTok",
        "vidtok_*_causal_*.ckpt, or its tensors as .safetensors",
        matches,
        split,
        config,
        names,
        options=("levels", "vidtok_version", "interpolation_mode"),
    )
)


def _block(child: str, layout: Layout = SAME) -> Table:
    """Rows of a residual block; `child` ends the names of its convolutions."""
    return (
        Row("norm1.norm", "layer.layers.0.module.norm"),
        Row(f"conv1{child}", "layer.layers.2.conv", layout),
        Row("norm2.norm", "layer.layers.3.module.norm"),
        Row(f"conv2{child}", "layer.layers.5.conv", layout),
        Row(f"nin_shortcut{child}", "shortcut.conv", layout),
    )


def _split_linear(ours: Tensor, num: int) -> Sequence[Tensor]:
    return (ours[..., None, None, None] if ours.ndim == 2 else ours).chunk(num)


def _join_linear(theirs: Sequence[Tensor]) -> Tensor:
    return SAME.join([x.flatten(1) if x.ndim > 1 else x for x in theirs])


LINEAR = Layout(_split_linear, _join_linear)
"""A linear map of ours, 1x1x1 convolutions of theirs."""
SPACE, TIME = without_axes(2), without_axes(3, 4)
MIDDLE: Table = (
    *nested("block_1", "layers.0", _block(".conv")),
    Row("attn_1.norm.norm", "layers.1.layer.layers.0.module.norm"),
    Row(tuple(f"attn_1.{part}.conv" for part in "qkv"), "layers.1.layer.layers.1.to_qkv", LINEAR),
    Row("attn_1.proj_out.conv", "layers.1.layer.layers.1.to_out", LINEAR),
    *nested("block_2", "layers.2", _block(".conv")),
)


def _layer_rows(layers: Sequence[Any], side: str, position: Callable[[int], int]) -> Iterator[Row]:
    """Rows of `layers`, from pixels to latents; `side`: "down" or "up"."""
    # The encoder resamples after the units of a level, the decoder (read backwards) before them.
    level = -1 if side == "down" else 0
    for index, entry in enumerate(layers):
        ours, kind = str(position(index)), entry if isinstance(entry, str) else entry[0]
        inner = ours if side == "down" else f"{ours}.layers.1"
        if kind == "vidtok_residual":
            level += side == "down"
            for unit in range(entry[2]):
                block = f"{level}.block.{unit}"
                layers = f"{ours}.layers.{2 * unit}", f"{ours}.layers.{2 * unit + 1}"
                yield from nested(f"{side}.{block}", layers[0], _block("", SPACE))
                yield from nested(f"{side}_temporal.{block}", layers[1], _block(".conv", TIME))
            level += side == "up"
        elif kind == "vidtok_middle":
            yield from nested("mid", ours, MIDDLE)
        elif kind == "vidtok_compress_space":
            yield Row(f"{side}.{level}.{side}sample.conv", f"{inner}.conv", SPACE)
        else:
            mixed = f"{side}_temporal.{level}.{side}sample"
            yield Row(f"{mixed}.conv.conv", f"{ours}.layers.1.conv.conv")
            yield Row(f"{mixed}.mix_factor", f"{ours}.layers.1.mix_factor")


def _network(
    state: Tensors, dims: Sequence[int], linear: bool, repeat_start: bool
) -> dict[str, Any]:
    num_units = len(list(numbered(state, "encoder.down.0.block.{}.")))
    up = _with(state, "decoder.up.{}.upsample.conv")
    return vidtok_options(
        dims[0],
        dim_mults=tuple(dim // dims[0] for dim in dims),
        num_units=num_units,
        space_down=_with(state, "encoder.down.{}.downsample.conv"),
        time_down=_with(state, "encoder.down_temporal.{}.downsample.conv.conv"),
        space_up=up,
        time_up=[i for i in _with(state, "decoder.up_temporal.{}.upsample.conv.conv") if i in up],
        linear=linear,
        repeat_start=repeat_start,
    )


def _fsq(z: int, levels: str | Sequence[int] | None) -> dict[str, Any]:
    if isinstance(levels, str):
        numbers = levels.strip("[]() ").split(",")
        if not all(number.strip().isdecimal() for number in numbers):
            raise ValueError(f"levels {levels!r}: give whole numbers with commas, such as 8,8,8,5")
        levels = [int(number) for number in numbers]
    if levels is None or len(levels) != z:
        given = "are not given" if levels is None else f"are {tuple(levels)}"
        raise ValueError(
            f"levels {given}: give the {z} numbers of levels of its quantizer, in published files "
            f"{','.join('8' * z)}"
        )
    return dict(use_fsq=True, fsq_levels=tuple(levels))


def _levels(state: Tensors) -> list[int]:
    return list(numbered(state, "encoder.down_temporal.{}."))


def _dims(state: Tensors) -> list[int]:
    """Channels of each level."""
    return [conv_shape(state, f"encoder.down.{i}.block.0.conv1.weight")[0] for i in _levels(state)]


def _with(state: Tensors, name: str) -> list[int]:
    """The levels that have a module."""
    return [level for level in _levels(state) if f"{name.format(level)}.weight" in state]


def _unused(state: Tensors) -> tuple[str, ...]:
    """Saved but unused modules: upsampling in time without one in space."""
    up = _with(state, "decoder.up.{}.upsample.conv")
    return tuple(f"decoder.up_temporal.{i}.upsample" for i in _levels(state) if i not in up)


def _uncompiled(state: Tensors) -> Tensors:
    """Names without what `torch.compile` puts into them."""
    return {name.replace("._orig_mod.", "."): tensor for name, tensor in state.items()}

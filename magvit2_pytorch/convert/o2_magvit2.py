"""O2-MAGVIT2: tables of its names and ours, and options from its shapes."""

from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor

from magvit2_pytorch.convert.project import (
    PROJECTS,
    Parts,
    Project,
    Row,
    Table,
    conv_shape,
    convert,
    group_by_prefix,
    nested,
    numbered,
    renamed,
    without_axes,
)
from magvit2_pytorch.discriminators.models import FrameDiscriminator, VideoDiscriminator
from magvit2_pytorch.quantizers.lfq import BitOrder
from magvit2_pytorch.tokenizer.presets import magvit2_options
from magvit2_pytorch.weights import Tensors

PREFIXES = ("", "tokenizer.", "module.", "module.tokenizer.")
"""Prefixes of the tokenizer's tensors: of the release, the trainer, its average, and wrapped."""
NUM_GROUPS = 32
FIRST_CONV = "encoder.conv_first"
MASK = "quantize.mask"
MISNAMED = "res_blocks.res_block_{level}.res_block_0_{unit}"
CORRECTED = "res_blocks.res_block_{level}.res_block_{level}_{unit}"
"""Their encoder names all units of a level but the first as of level 0; some files correct it."""

UNIT: Table = (
    Row("norm_0.norm_fn", "layer.layers.0.module.norm"),
    Row("conv_0.conv", "layer.layers.2.conv"),
    Row("norm_1.norm_fn", "layer.layers.3.module.norm"),
    Row("conv_1.conv", "layer.layers.5.conv"),
    Row("conv_shortcut.conv", "shortcut.conv"),
)
ENCODER: Table = (
    Row("conv_first.conv", "0.conv"),
    *nested("res_blocks.res_block_0.res_block_0_{unit}", "1.layers.{unit}", UNIT),
    *nested("res_blocks.res_block_final.res_block_final_{unit}", "-4.layers.{unit}", UNIT),
    Row("conv_downsample_blocks.conv_downsample_{level}.conv", "{level+2}.layers.0.conv"),
    *nested("res_blocks.res_block_{level}.res_block_{level}_0", "{level+1}.layers.1", UNIT),
    *nested(MISNAMED, "{level+1}.layers.{unit+1}", UNIT),
    Row("final_norm.norm_fn", "-3.module.norm"),
    Row("conv_last.conv", "-1.conv"),
)
CONDITION = ("cond_norm_layers.cond_norm_{level}.gamma", "cond_norm_layers.cond_norm_{level}.beta")
DECODER: Table = (
    Row("conv_first.conv", "0.conv"),
    *nested("res_blocks.res_block_pre.res_block_pre_{unit}", "1.layers.{unit}", UNIT),
    Row(CONDITION, "{level+2}.layers.0.to_gamma_beta"),  # of level 0, without upsampling
    *nested("res_blocks.res_block_0.res_block_0_{unit}", "2.layers.{unit+1}", UNIT),
    Row(
        "conv_upsample_blocks.conv_upsample_{level}.conv1.conv", "{level+3}.layers.0.layers.0.conv"
    ),
    Row(CONDITION, "{level+2}.layers.1.to_gamma_beta"),
    *nested(CORRECTED, "{level+2}.layers.{unit+2}", UNIT),
    Row("final_norm.norm_fn", "-1.layers.0.module.norm"),
    Row("conv_last.conv", "-1.layers.2.conv"),
)
NAMES: Table = (
    *nested("encoder", "encoder.layers", ENCODER),
    *nested("decoder", "decoder.layers", DECODER),
    Row(MASK, None),
)
"""Names in the video model; `names` has those of a checkpoint."""


def matches(state: Tensors) -> bool:
    """True if the tensors have the names of a tokenizer of O2-MAGVIT2."""
    return any(name.startswith(_first_convs()) for name in state)


def split(state: Tensors) -> Parts:
    """Parts of a checkpoint of the release, the trainer, or its average."""
    starts = [start for start in _first_convs() if any(n.startswith(start) for n in state)]
    prefix = starts[0].removesuffix(f"{FIRST_CONV}.")
    module = prefix.removesuffix("tokenizer.")
    # The tokenizer's prefix comes last: it may be a prefix of the others.
    prefixes = {f"{module}{name}.": name for name in ("perceptual_model", "discriminator")}
    parts, unknown = group_by_prefix(state, prefixes | {prefix: "tokenizer"})
    tokenizer, discriminator = (
        {name.removeprefix(start): tensor for name, tensor in parts.pop(part).items()}
        for start, part in ((prefix, "tokenizer"), (f"{module}discriminator.", "discriminator"))
    )
    left_out = {name: len(tensors) for name, tensors in parts.items() if tensors}
    return Parts(tokenizer, discriminator, left_out, unknown)


def _first_convs() -> tuple[str, ...]:
    return tuple(f"{prefix}{FIRST_CONV}." for prefix in PREFIXES)


def names(state: Tensors) -> Table:
    """The table of a checkpoint: `NAMES` or one of its variants."""
    table = NAMES
    if _count(state, "encoder.res_blocks.res_block_1.res_block_1_{}") > 1:
        table = renamed(table, lambda name: name.replace(MISNAMED, CORRECTED))
    if not has_time(state):
        table = renamed(table, lambda name: name.removesuffix(".conv"), without_axes(2))
    return table


def config(state: Tensors, source: str = "", bit_order: BitOrder | None = None) -> dict[str, Any]:
    """Options of the tokenizer with these weights, read from their shapes.

    Two options do not show in shapes: group norms are taken to have 32 groups, as all have in
    O2-MAGVIT2, and the image size to give 16 x 16 latents. Raises `ValueError` if the weights fit
    no tokenizer.
    """
    is_video = has_time(state)
    init_dim, channels = _dims(state, FIRST_CONV)
    num_levels = 1 + _count(state, "encoder.conv_downsample_blocks.conv_downsample_{}")
    widths = [
        _dims(state, f"encoder.res_blocks.res_block_{level}.res_block_{level}_0.conv_0")[0]
        for level in range(num_levels)
    ]
    bits, _ = _dims(state, "encoder.conv_last")
    num_units = _count(state, "encoder.res_blocks.res_block_final.res_block_final_{}")
    num_decoder_units = _count(state, "decoder.res_blocks.res_block_pre.res_block_pre_{}")
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
    stored_order = _bit_order(state[MASK], bits) if MASK in state else "msb"
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
        lfq_bit_order=bit_order or stored_order,
    )


def has_time(state: Tensors) -> bool:
    """True for a video model, False for an image model."""
    return any(name.startswith(f"{FIRST_CONV}.conv.") for name in state)


def _dims(state: Tensors, conv: str) -> tuple[int, int]:
    """Output and input channels of a convolution."""
    name = f"{conv}.conv.weight" if has_time(state) else f"{conv}.weight"
    return conv_shape(state, name)[:2]


def _count(state: Tensors, name: str) -> int:
    """The number of modules with a numbered name, counted from 0."""
    return len(list(numbered(state, f"{name}.")))


def _time_stride(state: Tensors, stage: int) -> int:
    name = f"decoder.conv_upsample_blocks.conv_upsample_{stage}.conv1"
    dim_out, dim = _dims(state, name)
    stride = dim_out // (4 * dim)
    if dim_out != 4 * dim * stride or not 1 <= stride <= 1 + has_time(state):
        raise ValueError(
            f"{name} has {dim_out} output channels for {dim} input channels: 4 times as many "
            "upsample space, 8 times as many space and time"
        )
    return stride


def _bit_order(mask: Tensor, num_bits: int) -> BitOrder:
    """The bit order that has these powers of two as weights."""
    powers = [2.0**bit for bit in range(num_bits)]
    orders: dict[BitOrder, list[float]] = {"msb": powers[::-1], "lsb": powers}
    for order, weights in orders.items():
        if mask.flatten().tolist() == weights:
            return order
    raise ValueError(
        f"its {MASK} is {mask.flatten().tolist()}: it should be the powers of two below "
        f"2^{num_bits}, from high to low or from low to high"
    )


PROJECTS.register("o2-magvit2")(
    Project(
        "O2-MAGVIT2",
        "pytorch_model.bin, model.safetensors, iter_N.ckpt, iter_N_ema.ckpt, or the folder of one",
        matches,
        split,
        config,
        names,
        options=("bit_order",),
    )
)


DISCRIMINATOR_NAMES: Table = (
    Row("conv_in", "network.stem"),
    Row("res_blocks.{block}.conv1", "network.blocks.{block}.conv_in"),
    Row("res_blocks.{block}.conv2", "network.blocks.{block}.shortcut"),
    Row("res_blocks.{block}.conv3", "network.blocks.{block}.conv_out"),
    Row("res_blocks.{block}.blur.filt", None),  # constants of ours, see `_check_blur`
    Row("conv_out", "network.conv_out"),
    Row("linear0", "network.head.to_logit.0"),
    Row("linear1", "network.head.to_logit.2"),
)
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
    owner = "the discriminator"
    dim, channels, *kernel = conv_shape(state, "conv_in.weight", owner)
    num_blocks = len({name.split(".")[1] for name in state if name.startswith("res_blocks.")})
    convs = [f"res_blocks.{block}.conv3.weight" for block in range(num_blocks)]
    dims = [conv_shape(state, name, owner)[0] for name in convs]
    are_multiples = dims and all(dim and dim_out and dim_out % dim == 0 for dim_out in dims)
    if len(kernel) not in (2, 3) or not are_multiples:
        raise ValueError(
            f"a first convolution of {(dim, channels, *kernel)} and blocks of {dims} channels are "
            "not those of a discriminator of O2-MAGVIT2"
        )
    num_positions = conv_shape(state, "linear0.weight", owner)[1] // dims[-1]
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
    _check_blur(state, [dim, *dims], len(kernel))
    weights = convert(state, DISCRIMINATOR_NAMES, discriminator, owner)
    discriminator.load_state_dict(weights)
    return discriminator.eval()


def _guess_size(num_positions: int, num_blocks: int, num_axes: int) -> tuple[int, ...]:
    """Guesses the input size; a block halves n to ceil(n / 2)."""
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


def _check_blur(state: Tensors, dims: list[int], num_axes: int) -> None:
    """Raises `ValueError` on blur filters other than ours, which are constants."""
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    expected: Tensor = torch.ones(())
    for _ in range(num_axes):
        expected = expected[..., None] * taps
    for number, dim in enumerate(dims[:-1]):
        name = f"res_blocks.{number}.blur.filt"
        blur = state.get(name, expected.expand(dim, 1, *expected.shape))
        if blur.shape != (dim, 1, *expected.shape) or not bool((blur.float() == expected).all()):
            raise ValueError(
                f"{name} of the discriminator is not the filter [1, 2, 1] / 4, the only one that "
                "can be converted"
            )

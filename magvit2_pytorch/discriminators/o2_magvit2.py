"""Conversion of the discriminators in checkpoints of O2-MAGVIT2."""

from math import isqrt, prod

import torch
from torch import Tensor

from magvit2_pytorch.discriminators.frame import FrameDiscriminator
from magvit2_pytorch.discriminators.video import VideoDiscriminator
from magvit2_pytorch.state_file import Tensors, mismatches

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

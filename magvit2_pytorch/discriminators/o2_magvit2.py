"""The discriminators of O2-MAGVIT2's checkpoints."""

from math import isqrt, prod

import torch
from torch import Tensor

from magvit2_pytorch.discriminators.frame import FrameDiscriminator
from magvit2_pytorch.discriminators.video import VideoDiscriminator
from magvit2_pytorch.state_file import Tensors, mismatches

ROOMS = {
    "network.stem": "conv_in",
    "network.conv_out": "conv_out",
    "network.head.to_logit.0": "linear0",
    "network.head.to_logit.2": "linear1",
}
BLOCK = {"conv_in": "conv1", "shortcut": "conv2", "conv_out": "conv3"}
"""What is called how there, as a whole and within `res_blocks`."""

NUM_FRAMES = 17
"""Frames of the clips that O2-MAGVIT2's configurations train on."""


def convert_discriminator(
    state: Tensors, input_size: tuple[int, ...] | None = None
) -> FrameDiscriminator | VideoDiscriminator:
    """The discriminator that these tensors are, by O2-MAGVIT2's names, with head "fixed".

    `input_size` is what it was trained on, (frames, height, width) or for images (height, width).
    If not given, it is taken for square, and of all maps that the head has weights for the one of
    the largest side is it; of the clips with that map, those of 17 frames or else the shortest.
    Raises `ValueError` where a tensor is missing, left over, or of a shape that does not fit.
    """
    dim, channels, *kernel = _shape(state, "conv_in.weight")
    num_blocks = len({name.split(".")[1] for name in state if name.startswith("res_blocks.")})
    dims = [_shape(state, f"res_blocks.{k}.conv3.weight")[0] for k in range(num_blocks)]
    widened = dims and all(dim and width and width % dim == 0 for width in dims)
    if len(kernel) not in (2, 3) or not widened:
        raise ValueError(
            f"a first convolution of {(dim, channels, *kernel)} before blocks of {dims} channels "
            "is none of O2-MAGVIT2's discriminators"
        )
    num_positions = _shape(state, "linear0.weight")[1] // dims[-1]
    if input_size is None:
        input_size = _likely_size(num_positions, num_blocks, len(kernel))
    elif prod(-(-size // 2**num_blocks) for size in input_size) != num_positions:
        raise ValueError(
            f"input_size {input_size} does not fit: the head has weights for a map of "
            f"{num_positions} positions, and {num_blocks} blocks halve every side"
        )
    kind = VideoDiscriminator if len(kernel) == 3 else FrameDiscriminator
    # The weights it starts with are nobody's concern, and the run's own draws stay as they are.
    with torch.random.fork_rng(devices=[]):
        discriminator = kind(
            channels=channels,
            dim=dim,
            dim_mults=tuple(width // dim for width in dims),
            head="fixed",
            input_size=input_size,
        )
    own = discriminator.state_dict()
    state = _without_blur(state, [dim, *dims], len(kernel))
    if wrong := mismatches(state, {o2_name(name): tensor.shape for name, tensor in own.items()}):
        raise ValueError(f"the discriminator {wrong}")
    discriminator.load_state_dict({name: state[o2_name(name)].float() for name in own})
    return discriminator.eval()


def o2_name(name: str) -> str:
    """What O2-MAGVIT2 calls a tensor of ours."""
    room, kind = name.rsplit(".", 1)
    if room in ROOMS:
        return f"{ROOMS[room]}.{kind}"
    block, conv = room.removeprefix("network.blocks.").split(".")
    return f"res_blocks.{block}.{BLOCK[conv]}.{kind}"


def _shape(state: Tensors, name: str) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"the discriminator lacks {name}")
    shape = tuple(state[name].shape)
    if len(shape) < 2:
        raise ValueError(f"{name} of the discriminator is {shape}, which is no layer's")
    return shape


def _likely_size(num_positions: int, num_blocks: int, num_axes: int) -> tuple[int, ...]:
    """A size that a map of so many positions comes of; a side of n becomes one of ceil(n / 2)."""
    scale = 2**num_blocks
    sides = range(isqrt(num_positions), 0, -1)
    side = next((side for side in sides if num_positions % side**2 == 0), 0)
    if not side or (num_axes == 2 and side**2 != num_positions):
        raise ValueError(
            f"the head of the discriminator has weights for a map of {num_positions} positions, "
            "which is no square: give the input_size it was trained on"
        )
    if num_axes == 2:
        return side * scale, side * scale
    frames = num_positions // side**2
    fits = -(-NUM_FRAMES // scale) == frames
    return NUM_FRAMES if fits else 1 + (frames - 1) * scale, side * scale, side * scale


def _without_blur(state: Tensors, dims: list[int], num_axes: int) -> Tensors:
    """The state less the blur's filters, which are the same everywhere: ours are built in."""
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    right: Tensor = torch.ones(())
    for _ in range(num_axes):
        right = right[..., None] * taps
    state = dict(state)
    for number, dim in enumerate(dims[:-1]):
        name = f"res_blocks.{number}.blur.filt"
        found = state.pop(name, None)
        if found is None:
            continue
        if found.shape != (dim, 1, *right.shape) or not bool((found.float() == right).all()):
            raise ValueError(
                f"{name} of the discriminator blurs otherwise than [1, 2, 1] / 4 does: there is "
                "no such discriminator here"
            )
    return state

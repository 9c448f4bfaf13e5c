"""A discriminator as one file: safetensors, with the options that build it in the header."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from magvit2_pytorch.discriminators.discriminator import (
    DISCRIMINATORS,
    Discriminator,
    build_discriminator,
)
from magvit2_pytorch.discriminators.heads import FixedHead, PatchHead, PooledHead
from magvit2_pytorch.discriminators.multiscale import MultiScaleDiscriminator
from magvit2_pytorch.state_file import default_file_mode, mismatches, read_tensors

KEY = "discriminator"
ACCEPTED = "a file that save_discriminator wrote"


def save_discriminator(discriminator: Discriminator, path: str | Path) -> None:
    """Writes weights and options; `load_discriminator` needs nothing else."""
    # The format knows one memory order; channels-last comes back on loading.
    state = {name: value.contiguous() for name, value in discriminator.state_dict().items()}
    options = json.dumps(options_of(discriminator))
    with default_file_mode(path):
        save_file(state, path, metadata={"format": "pt", KEY: options})


def load_discriminator(path: str | Path) -> Discriminator:
    """The discriminator, in eval mode, on the CPU.

    Raises `FileNotFoundError`, or `ValueError` where this is no file of `save_discriminator`.
    """
    state = read_tensors(path, ACCEPTED)
    try:
        with safe_open(path, framework="pt") as file:
            options = json.loads((file.metadata() or {})[KEY])
    except (KeyError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{path} does not say what discriminator it is: give {ACCEPTED}"
        ) from error
    discriminator = build_discriminator(**options)
    wanted = {name: value.shape for name, value in discriminator.state_dict().items()}
    if wrong := mismatches(state, wanted):
        raise ValueError(f"{path} does not fit its own options: it {wrong}")
    discriminator.load_state_dict(state)
    return discriminator.eval()


def options_of(discriminator: Discriminator) -> dict[str, Any]:
    """What `build_discriminator` needs to build one like it, read off its parts."""
    name = next(name for name, kind in DISCRIMINATORS.items() if type(discriminator) is kind)
    if isinstance(discriminator, MultiScaleDiscriminator):
        scales = [(d.num_frames, d.stride) for d in discriminator.discriminators]
        options = options_of(discriminator.discriminators[0])
        for own in ("num_frames", "stride", "input_size"):
            del options[own]
        return {**options, "name": name, "scales": scales}
    network = discriminator.network
    head, blocks, dim = network.head, network.blocks, network.stem.out_channels
    # With all blocks as wide as their input, the two orders are one.
    widened_first = any(b.conv_in.in_channels != b.conv_in.out_channels for b in blocks)
    heads = {FixedHead: "fixed", PatchHead: "patch", PooledHead: "pooled"}
    timing = ("num_frames", "stride") if name == "video" else ("num_frames",)
    return {
        "name": name,
        "channels": discriminator.channels,
        "dim": dim,
        "dim_mults": [block.conv_out.out_channels // dim for block in blocks],
        **{option: getattr(discriminator, option) for option in timing},
        "head": heads[type(head)],
        "input_size": getattr(head, "input_size", None),
        "block_order": "paper" if widened_first else "o2",
        "blur_taps": len(blocks[0].pool.taps),
    }

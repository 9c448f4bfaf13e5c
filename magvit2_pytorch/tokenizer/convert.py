"""Checkpoints of O2-MAGVIT2 as tokenizers of this library."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from magvit2_pytorch.quantizers.bits import BitOrder
from magvit2_pytorch.state_file import Tensors, abbreviate, mismatches, read_tensors
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.o2_magvit2 import (
    FIRST,
    has_time,
    name_table,
    options_from_shapes,
)

ACCEPTED = (
    "a checkpoint of O2-MAGVIT2: pytorch_model.bin, model.safetensors, iter_N.ckpt, "
    "iter_N_ema.ckpt, or the folder of one"
)
FILES = ("model.safetensors", "pytorch_model.bin")
"""What a checkpoint is called within its folder; the first of these that is there is read."""
PREFIXES = ("", "tokenizer.", "module.", "module.tokenizer.")
"""Before the names of the tokenizer's tensors: the release, the trainer, its average, wrapped."""
MASK = "quantize.mask"
OTHERS = {
    "decoder.layers.0.conv.": "a tokenizer of this library, which needs no conversion",
    "encoder_layers.": "a model of magvit2-pytorch",
    "encoder.mid_block.": "a model of Open-MAGVIT2 or of the W.A.L.T. code that descends from it",
    "encoder.mid.": "an autoencoder of latent diffusion, or one like it",
    "encoder.down_blocks.": "an autoencoder of diffusers",
}
"""What else there is, by how some of its names begin (after a prefix, if there is one)."""


class Checkpoint(NamedTuple):
    """Tensors of O2-MAGVIT2 by the names that its modules give them."""

    tokenizer: Tensors
    discriminator: Tensors
    """Empty where the checkpoint is of the tokenizer alone."""


def convert_o2_magvit2(path: str | Path, bit_order: BitOrder | None = None) -> VideoTokenizer:
    """The tokenizer that a checkpoint of O2-MAGVIT2 holds, in eval mode and float32.

    Video or image model, its size and everything else are told from names and shapes. Its codes
    are O2-MAGVIT2's own, or have their bits in the order of `bit_order`. Raises
    `FileNotFoundError`, or `ValueError` with what is wrong: every tensor must have its place.
    """
    return tokenizer_from_state(read_checkpoint(path).tokenizer, str(path), bit_order)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """What lies in a checkpoint file, or in the one in a folder; perceptual weights are left out.

    Tensors may share memory with the file.
    """
    path = _find_file(Path(path))
    return split_checkpoint(read_tensors(path, ACCEPTED), str(path))


def split_checkpoint(state: Tensors, source: str) -> Checkpoint:
    """The same of a state dict that came from `source`, whichever of `PREFIXES` it has."""
    prefixes = [p for p in PREFIXES if any(key.startswith(f"{p}{FIRST}.") for key in state)]
    if not prefixes:
        raise ValueError(
            f"{source} is no O2-MAGVIT2 checkpoint{_what_else(state)}: it has no {FIRST}; "
            f"give {ACCEPTED}"
        )
    prefix = prefixes[0]
    module = prefix.removesuffix("tokenizer.")
    places = {f"{module}perceptual_model.": Tensors(), f"{module}discriminator.": Tensors()}
    places[prefix] = Tensors()
    strays = []
    for name, tensor in state.items():
        place = next((start for start in places if name.startswith(start)), None)
        if "." not in name and tensor.numel() <= 1:
            continue  # the number of steps, and the like, that averages keep
        if place is None:
            strays.append(name)
        else:
            places[place][name.removeprefix(place)] = tensor
    if strays:
        raise ValueError(
            f"{source} is no O2-MAGVIT2 checkpoint: its names begin with {prefix!r}, "
            f"but for {abbreviate(sorted(strays))}; give {ACCEPTED}"
        )
    return Checkpoint(places[prefix], places[f"{module}discriminator."])


def tokenizer_from_state(
    state: Tensors, source: str = "the state dict", bit_order: BitOrder | None = None
) -> VideoTokenizer:
    """The same of the tokenizer's tensors, which came from `source`; they are copied."""
    try:
        options = options_from_shapes(state)
        num_bits = options["codebook_size"].bit_length() - 1
        own_order = _bit_order(state[MASK], num_bits) if MASK in state else "msb"
        # Without memory or random numbers: the run's own draws stay as they are.
        with torch.device("meta"):
            tokenizer = VideoTokenizer(**options, lfq_bit_order=bit_order or own_order)
        weights = _weights(tokenizer, {name: state[name] for name in state if name != MASK})
    except ValueError as error:
        raise ValueError(f"cannot convert {source}: {error}") from error
    tokenizer.load_state_dict(weights, assign=True)
    return tokenizer.to(memory_format=torch.channels_last_3d).eval()


def _find_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"{path} holds no {' or '.join(FILES)}: give {ACCEPTED}")


def _what_else(state: Tensors) -> str:
    for telltale, what in OTHERS.items():
        if any(f".{telltale}" in f".{name}" for name in state):
            return f" but looks like {what}"
    return ""


def _bit_order(mask: Tensor, num_bits: int) -> BitOrder:
    """The order in which powers of two weigh the bits."""
    powers = [2.0**place for place in range(num_bits)]
    orders: dict[BitOrder, list[float]] = {"msb": powers[::-1], "lsb": powers}
    for order, wanted in orders.items():
        if mask.flatten().tolist() == wanted:
            return order
    raise ValueError(
        f"its {MASK} is {mask.flatten().tolist()}: it should be the powers of two below "
        f"2^{num_bits}, from high to low or from low to high"
    )


def _weights(tokenizer: VideoTokenizer, state: Tensors) -> Tensors:
    """The parameters of a tokenizer from tensors that all have one place there."""
    table, parameters = name_table(tokenizer, state), dict(tokenizer.named_parameters())
    wanted = {}
    for ours, theirs in table.items():
        dim, *rest = parameters[ours].shape
        if len(rest) == 4 and not has_time(state):
            rest.pop(1)  # their convolutions over pictures know no time
        wanted |= dict.fromkeys(theirs, (dim // len(theirs), *rest))
    if wrong := mismatches(state, wanted):
        raise ValueError(f"it {wrong}")
    odd = sorted(f"{n} is {x.dtype}" for n, x in state.items() if not x.is_floating_point())
    if odd:
        raise ValueError(f"weights are floating-point numbers, but {abbreviate(odd)}")
    return {
        ours: torch.cat([state[name].float() for name in theirs]).reshape(parameters[ours].shape)
        for ours, theirs in table.items()
    }

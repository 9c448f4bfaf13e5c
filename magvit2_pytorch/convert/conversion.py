"""Conversion of O2-MAGVIT2 checkpoints to tokenizers of this library."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from magvit2_pytorch.convert.o2_magvit2 import FIRST_CONV, has_time, name_table, options_from_shapes
from magvit2_pytorch.quantizers.lfq import BitOrder
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.weights import Tensors, abbreviate, mismatches, read_tensors

ACCEPTED = (
    "a checkpoint of O2-MAGVIT2: pytorch_model.bin, model.safetensors, iter_N.ckpt, "
    "iter_N_ema.ckpt, or the folder of one"
)
FILES = ("model.safetensors", "pytorch_model.bin")
"""File names of a checkpoint in a folder; the first existing one is read."""
PREFIXES = ("", "tokenizer.", "module.", "module.tokenizer.")
"""Prefixes of the tokenizer's tensors: of the release, the trainer, its average, and wrapped."""
MASK = "quantize.mask"
OTHER_MODELS = {
    "decoder.layers.0.conv.": "a tokenizer of this library, which needs no conversion",
    "encoder_layers.": "a model of magvit2-pytorch",
    "encoder.mid_block.": "a model of Open-MAGVIT2 or of the W.A.L.T. code derived from it",
    "encoder.mid.": "an autoencoder of latent diffusion, or a similar one",
    "encoder.down_blocks.": "an autoencoder of diffusers",
}
"""Other kinds of checkpoints, by the start of a tensor name (after any prefix)."""


class Checkpoint(NamedTuple):
    """Tensors of O2-MAGVIT2, by the names that its modules give them."""

    tokenizer: Tensors
    discriminator: Tensors
    """Empty if the checkpoint holds only the tokenizer."""


def convert_o2_magvit2(path: str | Path, bit_order: BitOrder | None = None) -> VideoTokenizer:
    """The tokenizer in an O2-MAGVIT2 checkpoint, in eval mode and float32.

    All options, including video or image model, are read from tensor names and shapes. Codes equal
    those of O2-MAGVIT2, or have the bit order `bit_order`. Raises `FileNotFoundError`, or
    `ValueError` for missing, unknown or misshapen tensors.
    """
    return tokenizer_from_state(read_checkpoint(path).tokenizer, str(path), bit_order)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Tensors of a checkpoint, given as a file or its folder.

    Perceptual weights are left out. Tensors may share memory with the file.
    """
    path = _find_file(Path(path))
    return split_checkpoint(read_tensors(path, ACCEPTED), str(path))


def split_checkpoint(state: Tensors, source: str) -> Checkpoint:
    """`read_checkpoint` for a state dict; `source` names it in errors."""
    prefixes = [p for p in PREFIXES if any(key.startswith(f"{p}{FIRST_CONV}.") for key in state)]
    if not prefixes:
        raise ValueError(
            f"{source} is not an O2-MAGVIT2 checkpoint{_likely_origin(state)}: it has no "
            f"{FIRST_CONV}; give {ACCEPTED}"
        )
    prefix = prefixes[0]
    module = prefix.removesuffix("tokenizer.")
    # The tokenizer's prefix comes last: it may be a prefix of the others.
    parts = {f"{module}perceptual_model.": Tensors(), f"{module}discriminator.": Tensors()}
    parts[prefix] = Tensors()
    unknown = []
    for name, tensor in state.items():
        part = next((start for start in parts if name.startswith(start)), None)
        if "." not in name and tensor.numel() <= 1:
            continue  # counters, such as the number of steps of an average
        if part is None:
            unknown.append(name)
        else:
            parts[part][name.removeprefix(part)] = tensor
    if unknown:
        raise ValueError(
            f"{source} is not an O2-MAGVIT2 checkpoint: its names begin with {prefix!r}, "
            f"except for {abbreviate(sorted(unknown))}; give {ACCEPTED}"
        )
    return Checkpoint(parts[prefix], parts[f"{module}discriminator."])


def tokenizer_from_state(
    state: Tensors, source: str = "the state dict", bit_order: BitOrder | None = None
) -> VideoTokenizer:
    """The tokenizer with these tensors, copied; `source` names them in errors."""
    try:
        options = options_from_shapes(state)
        num_bits = options["codebook_size"].bit_length() - 1
        own_order = _bit_order(state[MASK], num_bits) if MASK in state else "msb"
        # On the meta device, without memory and without consuming random numbers.
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


def _likely_origin(state: Tensors) -> str:
    for start, description in OTHER_MODELS.items():
        if any(f".{start}" in f".{name}" for name in state):
            return f" but looks like {description}"
    return ""


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


def _weights(tokenizer: VideoTokenizer, state: Tensors) -> Tensors:
    """Parameters of a tokenizer; raises `ValueError` unless every tensor fits."""
    table, parameters = name_table(tokenizer, state), dict(tokenizer.named_parameters())
    wanted = {}
    for ours, theirs in table.items():
        dim, *rest = parameters[ours].shape
        if len(rest) == 4 and not has_time(state):
            rest.pop(1)  # their convolutions over images have no time axis
        wanted |= dict.fromkeys(theirs, (dim // len(theirs), *rest))
    if wrong := mismatches(state, wanted):
        raise ValueError(f"it {wrong}")
    wrong_types = sorted(f"{n} is {x.dtype}" for n, x in state.items() if not x.is_floating_point())
    if wrong_types:
        raise ValueError(f"weights must be floating-point numbers, but {abbreviate(wrong_types)}")
    return {
        ours: torch.cat([state[name].float() for name in theirs]).reshape(parameters[ours].shape)
        for ours, theirs in table.items()
    }

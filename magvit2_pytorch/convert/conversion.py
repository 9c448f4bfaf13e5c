"""Conversion of O2-MAGVIT2 checkpoints to tokenizers of this library."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.convert import o2_magvit2
from magvit2_pytorch.convert.name_table import convert
from magvit2_pytorch.quantizers.lfq import BitOrder
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.weights import Tensors, abbreviate, read_tensors

ACCEPTED = (
    "a checkpoint of O2-MAGVIT2: pytorch_model.bin, model.safetensors, iter_N.ckpt, "
    "iter_N_ema.ckpt, or the folder of one"
)
FILES = ("model.safetensors", "pytorch_model.bin")
"""File names of a checkpoint in a folder; the first existing one is read."""
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
    left_out: dict[str, int]
    """Tensors that are not converted: their module or kind, and their number."""


def convert_o2_magvit2(path: str | Path, bit_order: BitOrder | None = None) -> VideoTokenizer:
    """The tokenizer in an O2-MAGVIT2 checkpoint, in eval mode and float32.

    All options, including video or image model, are read from tensor names and shapes. Codes equal
    those of O2-MAGVIT2, or have the bit order `bit_order`. Raises `FileNotFoundError`, or
    `ValueError` for missing, unknown or misshapen tensors.
    """
    return tokenizer_from_state(read_checkpoint(path).tokenizer, str(path), bit_order)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Tensors of a checkpoint, given as a file or its folder.

    Tensors may share memory with the file.
    """
    path = _find_file(as_path(path))
    return split_checkpoint(read_tensors(path, ACCEPTED), str(path))


def split_checkpoint(state: Tensors, source: str) -> Checkpoint:
    """`read_checkpoint` for a state dict; `source` names it in errors."""
    prefixes = [
        prefix
        for prefix in o2_magvit2.PREFIXES
        if o2_magvit2.matches(
            {n.removeprefix(prefix): x for n, x in state.items() if n.startswith(prefix)}
        )
    ]
    if not prefixes:
        raise ValueError(
            f"{source} is not an O2-MAGVIT2 checkpoint{_likely_origin(state)}: it has no "
            f"{o2_magvit2.FIRST_CONV}; give {ACCEPTED}"
        )
    prefix = prefixes[0]
    module = prefix.removesuffix("tokenizer.")
    # The tokenizer's prefix comes last: it may be a prefix of the others.
    parts = {f"{module}perceptual_model.": Tensors(), f"{module}discriminator.": Tensors()}
    parts[prefix] = Tensors()
    left_out, unknown = Counter(), []
    for name, tensor in state.items():
        part = next((start for start in parts if name.startswith(start)), None)
        if "." not in name and tensor.numel() <= 1:
            left_out["counters"] += 1  # such as the number of steps of an average
        elif part is None:
            unknown.append(name)
        else:
            parts[part][name.removeprefix(part)] = tensor
    if unknown:
        raise ValueError(
            f"{source} is not an O2-MAGVIT2 checkpoint: its names begin with {prefix!r}, "
            f"except for {abbreviate(sorted(unknown))}; give {ACCEPTED}"
        )
    perceptual, discriminator, tokenizer = parts.values()
    left_out["perceptual_model"] = len(perceptual)
    return Checkpoint(tokenizer, discriminator, {n: num for n, num in left_out.items() if num})


def tokenizer_from_state(
    state: Tensors, source: str = "the state dict", bit_order: BitOrder | None = None
) -> VideoTokenizer:
    """The tokenizer with these tensors, copied; `source` names them in errors."""
    try:
        options = o2_magvit2.config(state)
        if bit_order is not None:
            options["lfq_bit_order"] = bit_order
        # On the meta device, without memory and without consuming random numbers.
        with torch.device("meta"):
            tokenizer = VideoTokenizer(**options)
        weights = convert(state, o2_magvit2.names(state), tokenizer)
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

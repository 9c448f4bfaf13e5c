"""Conversion of other projects' checkpoints to tokenizers of this library."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.config import check_known
from magvit2_pytorch.convert import o2_magvit2, vidtok  # noqa: F401  they register themselves
from magvit2_pytorch.convert.project import PROJECTS, Parts, Project, convert
from magvit2_pytorch.quantizers import build_quantizer
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.weights import Tensors, abbreviate, read_checkpoint_file

FILES = ("model.safetensors", "pytorch_model.bin")
"""File names of a checkpoint in a folder; the first existing one is read."""
OTHER_MODELS = {
    "decoder.layers.0.conv.": "a tokenizer of this library, which needs no conversion",
    "encoder_layers.": "a model of magvit2-pytorch",
    "encoder.mid_block.": "a model of Open-MAGVIT2 or of the W.A.L.T. code derived from it",
    "encoder.mid.": "an autoencoder of latent diffusion, or a similar one",
    "encoder.down_blocks.": "an autoencoder of diffusers",
    "encoder.middle.": "the autoencoder of Wan",
    "encoder.downsamples.": "the autoencoder of Wan",
}
"""Other kinds of checkpoints, by the start of a tensor name (after any prefix)."""


def convert_checkpoint(path: str | Path, **options: Any) -> VideoTokenizer:
    """The tokenizer in another project's checkpoint, in eval mode and float32.

    What shapes show is read from them. `options` are what they do not show: `bit_order` of
    O2-MAGVIT2 ("msb" or "lsb", by default the checkpoint's own); `levels`, `vidtok_version` and
    `interpolation_mode` of VidTok (see `convert.vidtok`). Raises `FileNotFoundError`, or
    `ValueError` for missing options and for missing, unknown or misshapen tensors.
    """
    return tokenizer_from_state(read_checkpoint(path).tokenizer, str(path), **options)


def read_checkpoint(path: str | Path) -> Parts:
    """Tensors of a checkpoint, given as a file or its folder."""
    path = as_path(path)
    if path.is_dir():
        files = [path / name for name in FILES if (path / name).is_file()]
        if not files:
            raise FileNotFoundError(f"{path} holds no {' or '.join(FILES)}: give {accepted()}")
        path = files[0]
    state, beside = read_checkpoint_file(path, accepted())
    parts = split_checkpoint(state, str(path))
    return parts._replace(left_out=parts.left_out | beside)


def split_checkpoint(state: Tensors, source: str) -> Parts:
    """`read_checkpoint` for a state dict; `source` names it in errors."""
    project = _find_project(state, source)
    parts = project.split(state)
    if parts.unknown:
        raise ValueError(
            f"{source} is not a checkpoint of {project.name}: it has "
            f"{abbreviate(sorted(parts.unknown))}, which belong to none of its modules; give "
            f"{project.accepted}"
        )
    return parts


def tokenizer_from_state(
    state: Tensors, source: str = "the state dict", **options: Any
) -> VideoTokenizer:
    """The tokenizer with these tensors, copied; `source` names them in errors."""
    project = _find_project(state, source)
    options = {name: value for name, value in options.items() if value is not None}
    try:
        check_known(f"a checkpoint of {project.name}", options, project.options)
        # On the meta device, without memory and without consuming random numbers.
        with torch.device("meta"):
            tokenizer = VideoTokenizer(**project.config(state, source, **options))
        network = nn.ModuleDict({"encoder": tokenizer.encoder, "decoder": tokenizer.decoder})
        weights = convert(state, project.names(state), network)
    except ValueError as error:
        raise ValueError(f"cannot convert {source}: {error}") from error
    network.load_state_dict(weights, assign=True)
    # A new one, on the CPU: quantizers of other projects have no weights.
    tokenizer.quantizer = build_quantizer(**tokenizer.config.quantizer_options)
    return tokenizer.to(memory_format=torch.channels_last_3d).eval()


def accepted() -> str:
    """The files that can be converted, as the end of "give ..."."""
    files = (f"a checkpoint of {p.name} ({p.accepted})" for p in PROJECTS.values())
    return " or ".join(files)


def _find_project(state: Tensors, source: str) -> Project:
    for project in PROJECTS.values():
        if project.matches(state):
            return project
    names = " or ".join(project.name for project in PROJECTS.values())
    likely = (
        f" but looks like {description}"
        for start, description in OTHER_MODELS.items()
        if any(f".{start}" in f".{name}" for name in state)
    )
    raise ValueError(
        f"{source} is not a checkpoint of {names}{next(likely, '')}: give {accepted()}"
    )

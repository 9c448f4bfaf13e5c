"""Discriminators in safetensors files, with their options in the header."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from magvit2_pytorch.discriminators.discriminator import Discriminator, build_discriminator
from magvit2_pytorch.state_file import default_file_mode, mismatches, read_tensors

METADATA_KEY = "discriminator"
ACCEPTED = "a file that save_discriminator wrote"


def save_discriminator(discriminator: Discriminator, path: str | Path) -> None:
    """Writes weights and options, from which `load_discriminator` builds it again."""
    # Safetensors stores contiguous tensors only; channels-last is restored on loading.
    state = {name: value.contiguous() for name, value in discriminator.state_dict().items()}
    metadata = {"format": "pt", METADATA_KEY: json.dumps(discriminator.options)}
    with default_file_mode(path):
        save_file(state, path, metadata=metadata)


def load_discriminator(path: str | Path) -> Discriminator:
    """Loads a discriminator in eval mode on the CPU.

    Raises `FileNotFoundError`, or `ValueError` if `save_discriminator` did not write the file.
    """
    state = read_tensors(path, ACCEPTED)
    try:
        with safe_open(path, framework="pt") as file:
            options = json.loads((file.metadata() or {})[METADATA_KEY])
    except (KeyError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{path} has no options of a discriminator in its header: give {ACCEPTED}"
        ) from error
    discriminator = build_discriminator(**options)
    expected = {name: value.shape for name, value in discriminator.state_dict().items()}
    if mismatch := mismatches(state, expected):
        raise ValueError(f"{path} does not match its own options: it {mismatch}")
    discriminator.load_state_dict(state)
    return discriminator.eval()

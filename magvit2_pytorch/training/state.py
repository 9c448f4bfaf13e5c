"""Training state on disk: safetensors, JSON and checksums, never a pickle."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from magvit2_pytorch.atomic import intact_folder, replacing_folder, sha256_of
from magvit2_pytorch.weights import default_file_mode

STATE_FILE = "state.json"
TENSORS_FILE = "tensors.safetensors"
CHECKSUMS_FILE = "checksums.sha256"
"""In the format of `sha256sum`, so that `sha256sum --check` verifies it."""


class SavedState(NamedTuple):
    """Contents of a checkpoint."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    """Step, counts and configurations, as plain JSON."""


class CheckpointNotSaved(OSError):
    """A checkpoint could not be written; earlier ones are unchanged."""


class DamagedCheckpoint(ValueError):
    """A file of a checkpoint is missing or differs from its checksum."""


def save_state(folder: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Writes a checkpoint atomically: it is complete or absent.

    It is written to a temporary folder, which is then renamed.
    Raises `CheckpointNotSaved` if there is no space or no permission to write.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    try:
        with replacing_folder(folder) as part:
            _check_room(part, num_bytes)
            with default_file_mode(part / TENSORS_FILE):
                save_file(tensors, part / TENSORS_FILE)
            text = json.dumps(values, indent=2) + "\n"
            (part / STATE_FILE).write_text(text, encoding="utf-8")
            lines = [_checksum(part / name) for name in (TENSORS_FILE, STATE_FILE)]
            (part / CHECKSUMS_FILE).write_bytes(b"".join(lines))
    except OSError as error:
        raise CheckpointNotSaved(
            f"the checkpoint {folder} could not be written: {error}. It needs "
            f"{num_bytes / 1e6:,.1f} MB"
        ) from error


def load_state(folder: Path) -> SavedState:
    """Reads a checkpoint to the CPU, without the checks of `verify_state`."""
    folder = intact_folder(folder)
    values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    return SavedState(load_file(folder / TENSORS_FILE), values)


def verify_state(folder: Path) -> None:
    """Verifies that all files of a checkpoint are as they were written.

    Raises `FileNotFoundError` if `folder` is not a checkpoint, and `DamagedCheckpoint` naming the
    file that is missing or damaged.
    """
    folder = intact_folder(folder)
    names = (TENSORS_FILE, STATE_FILE)
    if not any((folder / name).is_file() for name in names):
        raise FileNotFoundError(
            f"{folder} is not a training checkpoint: it has no {STATE_FILE} and no {TENSORS_FILE}. "
            "Give a folder like checkpoints/step-1000"
        )
    for name in (*names, CHECKSUMS_FILE):
        if not (folder / name).is_file():
            raise DamagedCheckpoint(f"{folder} is damaged: {name} is missing")
    lines = (folder / CHECKSUMS_FILE).read_bytes()
    for name in names:
        if _checksum(folder / name) not in lines:
            raise DamagedCheckpoint(
                f"{folder / name} is damaged: its checksum is not that in {CHECKSUMS_FILE}"
            )


def _checksum(path: Path) -> bytes:
    return f"{sha256_of(path)}  {path.name}\n".encode()


def _check_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(f"its disk has {free / 1e6:,.1f} MB free")


# Tensor names


def flatten_optimizer(optimizer: Optimizer, prefix: str) -> dict[str, Tensor]:
    """The optimizer's moments and counts as named tensors, without parameter groups."""
    return {
        f"{prefix}.{index}.{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """Loads tensors of `flatten_optimizer` into an identically built optimizer."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in select_prefix(tensors, prefix).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def select_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names start with `prefix.`, under the rest of their names."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def add_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors under `prefix.` and their names; the inverse of `select_prefix`."""
    return {f"{prefix}.{key}": value for key, value in tensors.items()}

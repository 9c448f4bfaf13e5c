"""Training state on disk: tensors in safetensors, the rest in JSON, checksums, never a pickle."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from magvit2_pytorch.data.file_hash import sha256_of
from magvit2_pytorch.data.replace_folder import intact_folder, replacing_folder
from magvit2_pytorch.state_file import shared_as_usual

STATE_FILE = "state.json"
TENSORS_FILE = "tensors.safetensors"
CHECKSUMS_FILE = "checksums.sha256"
"""As `sha256sum` writes it: `sha256sum --check` reads it too."""

State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors, and plain values."""


class CheckpointNotSaved(OSError):
    """A checkpoint could not be written; what was there before is as it was."""


class DamagedCheckpoint(ValueError):
    """A file of a checkpoint is not what was once written to it."""


def save_state(folder: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Writes beside `folder`, to the disk, and renames: a checkpoint is whole or not there.

    Raises `CheckpointNotSaved` where there is no room or no right to write.
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
    except (OSError, SafetensorError) as error:
        raise CheckpointNotSaved(
            f"the checkpoint {folder} could not be written: {error}. It takes "
            f"{num_bytes / 1e6:,.1f} MB"
        ) from error


def load_state(folder: Path) -> State:
    """Reads what `save_state` wrote, on the CPU. `verify_state` says whether it is still that."""
    folder = intact_folder(folder)
    return load_file(folder / TENSORS_FILE), _read_values(folder)


def verify_state(folder: Path) -> None:
    """Raises unless this is a checkpoint whose files are as they were written.

    `FileNotFoundError` says what a checkpoint looks like, `DamagedCheckpoint` which file is
    damaged. A checkpoint of before there were checksums is looked at for missing ends only.
    """
    folder = intact_folder(folder)
    missing = [n for n in (STATE_FILE, TENSORS_FILE) if not (folder / n).is_file()]
    if len(missing) == 2:
        raise FileNotFoundError(
            f"{folder} is no training checkpoint: it holds no {STATE_FILE} and no {TENSORS_FILE}. "
            "Give a folder like checkpoints/step-1000"
        )
    if missing:
        raise DamagedCheckpoint(f"{folder} is damaged: its {missing[0]} is gone")
    _check_checksums(folder)
    _read_values(folder)
    try:
        with safe_open(folder / TENSORS_FILE, framework="pt"):
            pass
    except SafetensorError as error:
        raise DamagedCheckpoint(f"{folder / TENSORS_FILE} is damaged: {error}") from error


def _check_checksums(folder: Path) -> None:
    if not (folder / CHECKSUMS_FILE).is_file():
        return
    lines = (folder / CHECKSUMS_FILE).read_bytes()
    for name in (TENSORS_FILE, STATE_FILE):
        if _checksum(folder / name) not in lines:
            raise DamagedCheckpoint(
                f"{folder / name} is damaged: {CHECKSUMS_FILE} has another checksum of it"
            )


def _checksum(path: Path) -> bytes:
    return f"{sha256_of(path)}  {path.name}\n".encode()


def _read_values(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedCheckpoint(f"{folder / STATE_FILE} is damaged: {error}") from error


def _check_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(f"{free / 1e6:,.1f} MB are free on its disk")


# Names of tensors


def flatten_optimizer(optimizer: Optimizer, prefix: str) -> dict[str, Tensor]:
    """The optimizer's state as named tensors; groups are rebuilt from the configuration."""
    return {
        f"{prefix}.{index}.{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """Takes back what `flatten_optimizer` gave, for an optimizer built the same way."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in under(tensors, prefix).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix.`, without it."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors named `prefix.` and their name; undone by `under`."""
    return {f"{prefix}.{key}": value for key, value in tensors.items()}

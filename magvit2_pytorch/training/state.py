"""Training state on disk: tensors in safetensors, the rest in JSON, and never a pickle."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from magvit2_pytorch.state_file import shared_as_usual

STATE_FILE = "state.json"
TENSORS_FILE = "tensors.safetensors"


def save_state(folder: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Writes both files beside `folder` and renames: a checkpoint is whole or not there."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with shared_as_usual(part / TENSORS_FILE):
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, part / TENSORS_FILE)
    (part / STATE_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_state` wrote; `FileNotFoundError` says what a checkpoint looks like."""
    for name in (STATE_FILE, TENSORS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is no training checkpoint: it holds no {name}. "
                "Give a folder like checkpoints/step-1000"
            )
    values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    return load_file(folder / TENSORS_FILE), values


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
    for key, value in tensors.items():
        if key.startswith(f"{prefix}."):
            index, name = key.removeprefix(f"{prefix}.").split(".", 1)
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

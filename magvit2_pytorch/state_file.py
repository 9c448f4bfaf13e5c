"""Files of tensors: what others wrote, read without running it, and what we write."""

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]

NOT_WEIGHTS = {
    b"version https://git-lfs": "is a git-LFS pointer, not the file that it stands for: fetch that "
    "with `git lfs pull`",
    b"<!doctype html": "is a web page: download the file itself",
    b"<html": "is a web page: download the file itself",
}
"""What is often saved in place of weights, by its first bytes in lower case."""


def read_tensors(path: str | Path, accepted: str) -> Tensors:
    """Tensors by name, from a .safetensors file or from one that `torch.save` wrote.

    They may lie under "state_dict"; numbers and texts beside them are left out. A pickle that
    holds anything else is refused, not run. Tensors may share memory with the file: copy what is
    to outlive it. `accepted` ends the sentence of an error, "give ...". Raises
    `FileNotFoundError`, or `ValueError` on anything that holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give {accepted}")
    _check_start(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    state = _unpickled(path, accepted)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    named = state.items() if isinstance(state, dict) else ()
    tensors = {k: v for k, v in named if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors and state != {}:
        under = [str(key) for key, value in named if isinstance(value, dict)]
        raise ValueError(
            f"{path} holds no tensors by name{f', but dicts ({abbreviate(under)})' * bool(under)}: "
            f"give {accepted}"
        )
    return tensors


@contextmanager
def default_file_mode(path: str | Path) -> Iterator[None]:
    """Gives a file written within to all whom new files are for.

    Safetensors keeps it to the owner alone, and the rest of a group would not see what one of
    them has trained.
    """
    path = Path(path)
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)


def mismatches(state: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]]) -> str:
    """Why tensors are not those of these names and shapes: "lacks ..."; empty where they are."""
    missing, extra = sorted(wanted.keys() - state), sorted(state.keys() - wanted.keys())
    wrong = sorted(
        f"{name} is {tuple(state[name].shape)}, not {tuple(wanted[name])}"
        for name in wanted.keys() & state.keys()
        if tuple(state[name].shape) != tuple(wanted[name])
    )
    faults = [f"lacks {abbreviate(missing)}"] * bool(missing)
    faults += [f"has {abbreviate(extra)} too many"] * bool(extra)
    faults += [abbreviate(wrong)] * bool(wrong)
    return "; ".join(faults)


def abbreviate(names: Sequence[str], num: int = 3) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - num} more" if len(names) > num else ""
    return ", ".join(names[:num]) + more


def _check_start(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if not start and not path.stat().st_size:
        raise ValueError(f"{path} is empty: download or copy it again")
    for telltale, what in NOT_WEIGHTS.items():
        if start.startswith(telltale):
            raise ValueError(f"{path} {what}")


def _unpickled(path: Path, accepted: str) -> Any:
    try:
        with warnings.catch_warnings():
            # Not the protocol that torch.save writes by default; some can be read all the same.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            mapped = _is_plain_archive(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle makes the reader raise what it pleases
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = "is damaged, was not made by torch.save, or holds more than tensors"
        what = f"holds {found[1]} beside tensors" if found else what
        raise ValueError(
            f"{path} was refused: it {what} and might run code; give {accepted}"
        ) from error


def _is_plain_archive(path: Path) -> bool:
    """Whether its tensors lie in the file as they do in memory, and need not be read at once.

    `torch.save` leaves them so; whoever packs the archive anew may compress them, and a map of
    that would be noise.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(file.compress_type == zipfile.ZIP_STORED for file in archive.infolist())

"""Tensor files, read without executing code, and checks of their tensors."""

import errno
import json
import os
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
from torch.utils._pytree import tree_leaves

from magvit2_pytorch.atomic import as_path

Tensors = dict[str, Tensor]
"""Tensors by name, as a state dict has them."""

NOT_WEIGHTS = {
    b"version https://git-lfs": "is a git-LFS pointer, not the file itself: fetch the file with "
    "`git lfs pull`",
    b"<!doctype html": "is a web page: download the file itself",
    b"<html": "is a web page: download the file itself",
}
"""Files often saved instead of weights, by their first bytes in lower case."""


def read_tensors(path: str | Path, accepted: str) -> Tensors:
    """Reads named tensors from a file of safetensors or `torch.save`.

    They may be under the key "state_dict"; numbers and strings beside them are ignored. A pickle
    with any other object is refused and not executed. Tensors may share memory with the file:
    copy those that must outlive it. `accepted` completes "give ..." in error messages. Raises
    `FileNotFoundError`, or `ValueError` on a file without named tensors.
    """
    return read_checkpoint_file(path, accepted)[0]


def read_checkpoint_file(path: str | Path, accepted: str) -> tuple[Tensors, dict[str, int]]:
    """`read_tensors`, and the number of tensors under each key beside "state_dict".

    A training framework keeps there what it needs to go on, such as the state of optimizers.
    """
    path = as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give {accepted}")
    _check_start(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path), {}
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    content = _unpickle(path, accepted)
    beside = {}
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        leaves = {str(key): tree_leaves(value) for key, value in content.items()}
        counts = {key: sum(isinstance(x, Tensor) for x in leaves[key]) for key in leaves}
        beside = {key: num for key, num in counts.items() if num and key != "state_dict"}
        content = content["state_dict"]
    items = content.items() if isinstance(content, dict) else ()
    tensors = {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors and content != {}:
        dicts = [str(key) for key, value in items if isinstance(value, dict)]
        raise ValueError(
            f"{path} contains no named tensors{f', but dicts ({abbreviate(dicts)})' * bool(dicts)}"
            f": give {accepted}"
        )
    return tensors, beside


DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""Names of safetensors, in the order of a file from its end."""


def write_tensors(tensors: Tensors, path: str | Path) -> None:
    """Writes a safetensors file, copying one tensor at a time.

    The bytes are those of `safetensors.torch.save_file`, which takes contiguous tensors only: a
    copy of all channels-last ones at once, on their device.
    """
    rank = {dtype: -number for number, dtype in enumerate(DTYPES)}
    ordered = sorted(tensors.items(), key=lambda item: (rank[item[1].dtype], item[0]))
    header, start = {}, 0
    for name, tensor in ordered:
        stop = start + tensor.nbytes
        entry = dict(dtype=DTYPES[tensor.dtype], shape=list(tensor.shape))
        header[name] = entry | dict(data_offsets=[start, stop])
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


@contextmanager
def default_file_mode(path: str | Path) -> Iterator[None]:
    """Gives a file written in this context the default permissions.

    Safetensors makes files readable by their owner only, and the rest of a group could not read
    weights that one of them has trained. Where the disk is full, it raises an error of its own,
    which becomes an `OSError`.
    """
    path = Path(path)
    path.touch()
    mode = path.stat().st_mode
    try:
        yield
    except SafetensorError as error:
        match = re.search(r"os error (\d+)", str(error))
        number = int(match[1]) if match else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    path.chmod(mode)


def mismatches(tensors: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]]) -> str:
    """Describes where names and shapes differ from `expected`; empty if they agree."""
    missing, extra = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected.keys())
    wrong = sorted(
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(expected[name])}"
        for name in expected.keys() & tensors.keys()
        if tuple(tensors[name].shape) != tuple(expected[name])
    )
    faults = [f"lacks {abbreviate(missing)}"] * bool(missing)
    faults += [f"has {abbreviate(extra)} too many"] * bool(extra)
    faults += [abbreviate(wrong)] * bool(wrong)
    return "; ".join(faults)


def abbreviate(names: Sequence[str], num: int = 3) -> str:
    """Lists the first `num` names and counts the rest."""
    more = f" and {len(names) - num} more" if len(names) > num else ""
    return ", ".join(names[:num]) + more


def _check_start(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if not start and not path.stat().st_size:
        raise ValueError(f"{path} is empty: download or copy it again")
    for prefix, description in NOT_WEIGHTS.items():
        if start.startswith(prefix):
            raise ValueError(f"{path} {description}")


def _unpickle(path: Path, accepted: str) -> Any:
    try:
        with warnings.catch_warnings():
            # torch.load warns of pickle protocols other than its default, and reads some of them.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            mmap = _is_uncompressed_archive(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can raise any exception
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = "is damaged, was not made by torch.save, or contains more than tensors"
        reason = f"contains {match[1]} beside tensors" if match else reason
        raise ValueError(
            f"{path} was refused: it {reason} and might run code; give {accepted}"
        ) from error


def _is_uncompressed_archive(path: Path) -> bool:
    """Returns True for a zip archive without compression, which can be mapped.

    `torch.save` writes such archives. An archive packed again by another tool may be compressed,
    and mapping it would give meaningless tensors.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(file.compress_type == zipfile.ZIP_STORED for file in archive.infolist())

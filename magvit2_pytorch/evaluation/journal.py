"""State of an evaluation on disk: lines of clips, and totals.

Lines are appended as clips are measured. Totals (counts of codes, moments of features) are saved
from time to time, with the number of bytes of lines that they cover. However a run ends, the next
one truncates the lines beyond its totals and continues from there.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from magvit2_pytorch.atomic import as_path, remove_abandoned, replacing
from magvit2_pytorch.config import flatten
from magvit2_pytorch.weights import default_file_mode

LINES_FILE = "clips.jsonl"
SUMS_FILE = "sums.safetensors"
SAVE_EVERY_S = 30.0
"""The most that a killed process can lose."""


class EvaluationError(ValueError):
    """An evaluation cannot continue, for a reason that the user can fix."""


class EvaluationMismatch(EvaluationError):
    """A folder was started with another tokenizer, other settings or other data."""


class Journal:
    """`clips.jsonl` of a folder: a header with settings, then lines.

    Opening it continues an earlier run, or raises `EvaluationMismatch` if that was another one.
    """

    def __init__(self, folder: str | os.PathLike, header: dict[str, Any]):
        self.folder = as_path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.folder)
        self.path, self.sums = self.folder / LINES_FILE, self.folder / SUMS_FILE
        if not self.path.exists():
            # Totals without lines belong to another evaluation.
            self.sums.unlink(missing_ok=True)
            with replacing(self.path) as part:
                part.write_bytes(_as_line(header))
        header_bytes = _check_header(self.path, header)
        self.state: dict[str, Tensor] = {}
        """Saved totals of the existing lines."""
        self.elapsed_s = 0.0
        """Duration of earlier runs, up to their last save."""
        num_bytes = self._load_sums(header_bytes)
        self.file = open(self.path, "r+b")  # noqa: SIM115, closed in __exit__
        self.file.truncate(num_bytes)
        self.file.seek(num_bytes)
        self.started = self.saved = time.monotonic()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    @property
    def total_s(self) -> float:
        """Duration of this run and of earlier ones."""
        return self.elapsed_s + time.monotonic() - self.started

    def append(self, line: dict[str, Any]) -> None:
        """Adds the line of a clip or of an unusable file."""
        self.file.write(_as_line(line))

    def lines(self) -> Iterator[dict[str, Any]]:
        """All lines so far, without the header."""
        self.file.flush()
        with open(self.path, "rb") as file:
            file.readline()
            yield from (json.loads(line) for line in file)

    def save(self, state: Callable[[], dict[str, Tensor]], every_s: float = 0.0) -> None:
        """Writes lines and totals to disk, at most every `every_s` seconds."""
        now = time.monotonic()
        if now - self.saved < every_s:
            return
        self.file.flush()
        os.fsync(self.file.fileno())
        metadata = {"bytes": str(self.file.tell()), "elapsed_s": repr(self.total_s)}
        tensors = {name: value.contiguous() for name, value in state().items()}
        tensors["end"] = torch.zeros(1)  # a file without tensors cannot be written
        with replacing(self.sums) as part, default_file_mode(part):
            save_file(tensors, part, metadata=metadata)
        self.saved = time.monotonic()

    def _load_sums(self, header_bytes: int) -> int:
        """Loads the saved totals; returns the bytes of lines they cover."""
        if not self.sums.exists():
            return header_bytes
        try:
            with safe_open(self.sums, "pt") as file:
                metadata, names = file.metadata(), set(file.keys()) - {"end"}
                state = {name: file.get_tensor(name) for name in names}
            num_bytes, elapsed_s = int(metadata["bytes"]), float(metadata["elapsed_s"])
        except (SafetensorError, KeyError, TypeError, ValueError):
            num_bytes = -1
        if not header_bytes <= num_bytes <= self.path.stat().st_size:
            warnings.warn(f"{self.sums} is damaged: all clips are measured again", stacklevel=3)
            return header_bytes
        self.state, self.elapsed_s = state, elapsed_s
        return num_bytes


def _as_line(values: dict[str, Any]) -> bytes:
    # ASCII: file names need not be valid text.
    return json.dumps(values, allow_nan=False).encode() + b"\n"


def _check_header(path: Path, header: dict[str, Any]) -> int:
    """Checks that the file has this header; returns its length in bytes."""
    with open(path, "rb") as file:
        line = file.readline()
    try:
        before = json.loads(line)
        is_journal = before["format"] == header["format"]
    except (ValueError, KeyError, TypeError):
        is_journal = False
    if not is_journal:
        raise EvaluationError(f"{path} was not written by an evaluation: choose another folder")
    old, new = (flatten(values, " ") for values in (before, json.loads(json.dumps(header))))
    differ = [
        f"{name} {_short(old.get(name))}, not {_short(new.get(name))}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    if differ:
        raise EvaluationMismatch(
            f"{path.parent} holds an evaluation with {'; '.join(differ)}: to continue it, use the "
            "same settings; otherwise choose another folder"
        )
    return len(line)


def _short(value: Any) -> str:
    """A value as text; hashes are abbreviated."""
    is_hash = isinstance(value, str) and len(value) == 64
    return value[:12] if is_hash else str(value)

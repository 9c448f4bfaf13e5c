"""What an evaluation has done so far, on disk: a line for each clip, and sums where lines end.

Lines are appended as clips are measured. What only sums can hold (counts of codes, moments of
features) is saved beside them every now and then, with how far into the lines it reaches. Whatever
ends a run, the next one cuts off the lines beyond its sums and goes on from there; as clips come in
one order, the last line says where that is.
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

from magvit2_pytorch.data.replace_file import remove_abandoned, replacing
from magvit2_pytorch.state_file import shared_as_usual

LINES_FILE = "clips.jsonl"
SUMS_FILE = "sums.safetensors"
SAVE_EVERY_S = 30.0
"""What a process that is killed can lose."""


class EvaluationError(ValueError):
    """An evaluation cannot go on, for a reason that the user can mend."""


class EvaluationMismatch(EvaluationError):
    """A folder was begun with another tokenizer, other settings or other data."""


class Journal:
    """`clips.jsonl` of a folder: a header, which says what is evaluated and how, and the lines.

    Opening it goes on where an earlier run stopped. Raises `EvaluationMismatch` with what differs
    where that run's header is another, and `EvaluationError` where the file is none of ours.
    """

    def __init__(self, folder: str | os.PathLike, header: dict[str, Any]):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.folder)
        self.path, self.sums = self.folder / LINES_FILE, self.folder / SUMS_FILE
        if not self.path.exists():
            # Without lines, sums would be another evaluation's.
            self.sums.unlink(missing_ok=True)
            with replacing(self.path) as part:
                part.write_bytes(_as_line(header))
        header_bytes = _check_header(self.path, header)
        self.state: dict[str, Tensor] = {}
        """What was saved with the lines that are there."""
        self.elapsed_s = 0.0
        """Of the runs before, up to where they saved."""
        whole = self._load_sums(header_bytes)
        self.file = open(self.path, "r+b")  # noqa: SIM115, it is open as long as we are
        self.file.truncate(whole)
        self.file.seek(whole)
        self.started = self.saved = time.monotonic()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    @property
    def total_s(self) -> float:
        """Seconds of this run and of those before it."""
        return self.elapsed_s + time.monotonic() - self.started

    def append(self, line: dict[str, Any]) -> None:
        """Adds what became of a clip or a file."""
        self.file.write(_as_line(line))

    def lines(self) -> Iterator[dict[str, Any]]:
        """All lines so far, without the header."""
        self.file.flush()
        with open(self.path, "rb") as file:
            file.readline()
            yield from (json.loads(line) for line in file)

    def save(self, state: Callable[[], dict[str, Tensor]], every_s: float = 0.0) -> None:
        """Makes the lines so far lasting, with the sums that belong to them.

        `every_s` does so only if the last time is as many seconds ago.
        """
        now = time.monotonic()
        if now - self.saved < every_s:
            return
        self.file.flush()
        os.fsync(self.file.fileno())
        about = {"bytes": str(self.file.tell()), "elapsed_s": repr(self.total_s)}
        tensors = {name: value.contiguous() for name, value in state().items()}
        tensors["end"] = torch.zeros(1)  # a file of no tensors at all cannot be written
        with replacing(self.sums) as part, shared_as_usual(part):
            save_file(tensors, part, metadata=about)
        self.saved = time.monotonic()

    def _load_sums(self, header_bytes: int) -> int:
        """Loads what was saved; gives how many bytes of lines it reaches to."""
        if not self.sums.exists():
            return header_bytes
        try:
            with safe_open(self.sums, "pt") as file:
                about, names = file.metadata(), set(file.keys()) - {"end"}
                state = {name: file.get_tensor(name) for name in names}
            reach, elapsed_s = int(about["bytes"]), float(about["elapsed_s"])
        except (SafetensorError, KeyError, TypeError, ValueError):
            reach = -1
        if not header_bytes <= reach <= self.path.stat().st_size:
            warnings.warn(f"{self.sums} is damaged: all clips are measured again", stacklevel=3)
            return header_bytes
        self.state, self.elapsed_s = state, elapsed_s
        return reach


def _as_line(values: dict[str, Any]) -> bytes:
    # ASCII: names of files need not be text.
    return json.dumps(values, allow_nan=False).encode() + b"\n"


def _check_header(path: Path, header: dict[str, Any]) -> int:
    """The length of the file's header, in bytes, where it is the same one."""
    with open(path, "rb") as file:
        line = file.readline()
    try:
        before = json.loads(line)
        is_ours = before["format"] == header["format"]
    except (ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise EvaluationError(f"{path} was not written by an evaluation: choose another folder")
    was, now = _flat(before), _flat(header)
    differ = [
        f"{name} {_short(was.get(name))}, not {_short(now.get(name))}"
        for name in sorted({*was, *now})
        if was.get(name) != now.get(name)
    ]
    if differ:
        raise EvaluationMismatch(
            f"{path.parent} holds an evaluation with {'; '.join(differ)}: to go on with it, give "
            "what it was begun with; else choose another folder"
        )
    return len(line)


def _short(value: Any) -> str:
    """A value for people: of a hash its beginning."""
    is_hash = isinstance(value, str) and len(value) == 64
    return value[:12] if is_hash else str(value)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Settings within settings, by one name each, as JSON has them."""
    values = json.loads(json.dumps(values))
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name} {inner}": it for inner, it in _flat(value).items()}
        else:
            flat[name] = value
    return flat

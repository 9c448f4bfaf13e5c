"""Checkpoints of a run, without pickles, and their folder."""

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from magvit2_pytorch.atomic import (
    as_path,
    intact_folder,
    remove_folder,
    replacing_folder,
    sha256_of,
)
from magvit2_pytorch.training.task import Best, Task
from magvit2_pytorch.weights import write_tensors

STATE_FILE = "state.json"
TENSORS_FILE = "tensors.safetensors"
CHECKSUMS_FILE = "checksums.sha256"
"""In the format of `sha256sum`, so that `sha256sum --check` verifies it."""
BEST = "best"
VALIDATION_FILE = "validation.json"
"""In the best checkpoint: its step and its validation value by name."""


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
    """Writes a checkpoint atomically; raises `CheckpointNotSaved` if it cannot be written."""
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    try:
        with replacing_folder(folder) as part:
            free = shutil.disk_usage(part).free
            if free < num_bytes:
                raise OSError(f"its disk has {free / 1e6:,.1f} MB free")
            write_tensors(tensors, part / TENSORS_FILE)
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
    """Raises `DamagedCheckpoint` for changed files, `FileNotFoundError` without a checkpoint."""
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


class Checkpoints:
    """A folder of checkpoints, such as `step-1000`, and the `best`.

    Only one process may write.
    """

    def __init__(self, folder: Path, keep: int | None = None, best: Best = Task.best):
        self.folder, self.keep, self.best = folder, keep, best
        self._saved: dict[str, Any] | None = None
        """Values of the checkpoint that was written last."""

    def path(self, step: int) -> Path:
        """Folder of this step's checkpoint, which need not exist."""
        return self.folder / f"step-{step}"

    # Resuming

    def steps(self) -> dict[int, Path]:
        """Complete checkpoints by step, oldest first."""
        checkpoints = {}
        for path in self.folder.glob("*step-*"):
            # The backup of an interrupted replacement counts: `whole` finds it.
            name = path.name.removeprefix(".").removesuffix(".old")
            number = name.removeprefix("step-")
            if number.isdecimal() and (intact_folder(self.folder / name) / STATE_FILE).is_file():
                checkpoints[int(number)] = self.folder / name
        return dict(sorted(checkpoints.items()))

    def find(self, resume: str | Path) -> Path | None:
        """The checkpoint that `resume` names, without verifying its files.

        `resume` is a folder, "latest" for the last checkpoint here, or "auto" for the same or None
        if there is none. Otherwise a missing checkpoint raises `FileNotFoundError`.
        """
        if resume in ("auto", "latest"):
            newest = list(self.steps().values())[-1:]
            if not newest and resume == "latest":
                raise FileNotFoundError(f"resume 'latest': there is no checkpoint in {self.folder}")
            return newest[0] if newest else None
        path = as_path(resume)
        if not intact_folder(path).is_dir():
            raise FileNotFoundError(
                f"resume {str(resume)!r}: no such folder; give one like {self.path(1000)}"
            )
        return path

    def choose(self, resume: str | Path) -> Path | None:
        """The checkpoint that `resume` names, after verifying every byte of it.

        With "auto" a damaged checkpoint is skipped with a warning, and an older one is used.
        Otherwise, or without an older one, raises `DamagedCheckpoint`.
        """
        path = self.find(resume)
        try:
            if path is not None:
                verify_state(path)
        except DamagedCheckpoint as error:
            older = Checkpoints(path.parent)._newest_undamaged(before=path)
            if resume != "auto" or older is None:
                advice = f"resume from {older}" if older else "no older checkpoint is undamaged"
                raise DamagedCheckpoint(f"{error}; {advice}") from error
            warnings.warn(f"{error}; resuming from {older} instead", stacklevel=2)
            return older
        return path

    def _newest_undamaged(self, before: Path) -> Path | None:
        steps = self.steps()
        limit = next((step for step, path in steps.items() if path == before), None)
        for step, path in reversed(steps.items()):
            if limit is None or step < limit:
                try:
                    verify_state(path)
                except DamagedCheckpoint:
                    continue
                return path
        return None

    # Saving

    def check_unused(self) -> None:
        """Raises `FileExistsError` if an earlier run saved checkpoints here."""
        if self.steps() or intact_folder(self.folder / BEST).is_dir():
            raise FileExistsError(
                f"{self.folder} holds checkpoints of an earlier run: continue that run with "
                "resume='latest', or choose another folder"
            )

    def save(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
        """Writes a checkpoint named by `values["step"]`, then removes old ones."""
        step = values["step"]
        self._clean_up()
        try:
            save_state(self.path(step), tensors, values)
        except CheckpointNotSaved as error:
            newest = self.find("auto")
            advice = "free some space, or choose another checkpoints_folder"
            advice += f"; {newest} is unchanged and can be resumed from" if newest else ""
            raise CheckpointNotSaved(f"{error}: {advice}") from error
        self._saved = values
        # Later ones are from another run, or from this one before it resumed at an older step.
        up_to_now = [path for number, path in self.steps().items() if number <= step]
        for path in up_to_now[: -self.keep] if self.keep else ():
            remove_folder(path)
        return self.path(step)

    def best_validation(self) -> dict[str, Any]:
        """Step and validation value of the best checkpoint; empty without one."""
        path = intact_folder(self.folder / BEST) / VALIDATION_FILE
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}

    def keep_if_best(
        self, value: float, tensors: dict[str, Tensor], values: dict[str, Any]
    ) -> None:
        """Saves this state as the best if its value is; never NaN."""
        earlier = self.best_validation().get(self.best.name)
        sign = 1 if self.best.goal == "max" else -1
        if not (sign * value > float("-inf") if earlier is None else sign * (value - earlier) > 0):
            return
        step = values["step"]
        source = self.path(step) if self._saved == values else self.save(tensors, values)
        with replacing_folder(self.folder / BEST) as part:
            for path in source.iterdir():
                try:
                    os.link(path, part / path.name)
                except OSError:
                    shutil.copy2(path, part / path.name)
            text = json.dumps({"step": step, self.best.name: value}) + "\n"
            (part / VALIDATION_FILE).write_text(text, encoding="utf-8")

    def _clean_up(self) -> None:
        """Cleans up after a killed process: restores backups, removes unfinished folders."""
        for name in ("step-*", BEST):
            for path in self.folder.glob(f".{name}.old"):
                target = self.folder / path.name.removeprefix(".").removesuffix(".old")
                shutil.rmtree(path) if target.exists() else os.replace(path, target)
            for path in self.folder.glob(f".{name}.part"):
                shutil.rmtree(path)

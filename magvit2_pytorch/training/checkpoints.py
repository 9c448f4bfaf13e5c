"""The checkpoints of a run: which there are, which to go on from, which to keep."""

import json
import os
import shutil
import warnings
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from magvit2_pytorch.data.replace_folder import intact_folder, remove_folder, replacing_folder
from magvit2_pytorch.training.state import (
    STATE_FILE,
    CheckpointNotSaved,
    DamagedCheckpoint,
    save_state,
    verify_state,
)

BEST = "best"
VALIDATION_FILE = "validation.json"
"""In the best checkpoint: its step, and the PSNR that made it the best."""


class Checkpoints:
    """A folder with `step-1000` for each step saved, and `best`, a checkpoint of its own.

    Only one process may write to it; `steps`, `find` and `choose` change nothing.
    """

    def __init__(self, folder: Path, keep: int | None = None):
        self.folder = folder
        self.keep = keep
        self._saved: dict[str, Any] | None = None
        """The values that were written last."""

    def path(self, step: int) -> Path:
        """Where the state of this step is, or would be."""
        return self.folder / f"step-{step}"

    # Going on

    def steps(self) -> dict[int, Path]:
        """All that were written to the end, oldest first."""
        found = {}
        for path in self.folder.glob("*step-*"):
            # What `whole` would find under the name that is not there.
            name = path.name.removeprefix(".").removesuffix(".old")
            number = name.removeprefix("step-")
            if number.isdecimal() and (intact_folder(self.folder / name) / STATE_FILE).is_file():
                found[int(number)] = self.folder / name
        return dict(sorted(found.items()))

    def find(self, resume: str | Path) -> Path | None:
        """The checkpoint that a word or a folder stands for, without looking into it.

        "latest" is the last one here, "auto" too, or None if there is none.
        Raises `FileNotFoundError` where there is none else.
        """
        if resume in ("auto", "latest"):
            newest = list(self.steps().values())[-1:]
            if not newest and resume == "latest":
                raise FileNotFoundError(f"resume 'latest': there is no checkpoint in {self.folder}")
            return newest[0] if newest else None
        path = Path(resume).expanduser()
        if not intact_folder(path).is_dir():
            raise FileNotFoundError(
                f"resume {str(resume)!r}: no such folder; give one like {self.path(1000)}"
            )
        return path

    def choose(self, resume: str | Path) -> Path | None:
        """The checkpoint that a word or a folder stands for, every byte of it checked.

        With "auto" a damaged one is passed over for the one before it, with a warning. Raises
        `DamagedCheckpoint` otherwise, and where no other is left; the message names the newest
        one that is whole.
        """
        path = self.find(resume)
        try:
            if path is not None:
                verify_state(path)
        except DamagedCheckpoint as error:
            older = Checkpoints(path.parent)._newest_intact_folder(before=path)
            if resume != "auto" or older is None:
                advice = f"go on from {older}" if older else "there is no older one that is whole"
                raise DamagedCheckpoint(f"{error}; {advice}") from error
            warnings.warn(f"{error}; going on from {older} instead", stacklevel=2)
            return older
        return path

    def _newest_intact_folder(self, before: Path) -> Path | None:
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

    def save(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
        """Writes a checkpoint named by its "step"; when it is whole, removes old ones.

        Raises `CheckpointNotSaved`, which names the newest one there is.
        """
        step = values["step"]
        self._tidy()
        try:
            save_state(self.path(step), tensors, values)
        except CheckpointNotSaved as error:
            newest = self.find("auto")
            advice = "make room, or give another checkpoints_folder"
            advice += f"; {newest} is as it was, to go on from" if newest else ""
            raise CheckpointNotSaved(f"{error}: {advice}") from error
        self._saved = values
        # Later ones are another run's, or of this one before it went back.
        up_to_now = [path for number, path in self.steps().items() if number <= step]
        for path in up_to_now[: -self.keep] if self.keep else ():
            remove_folder(path)
        return self.path(step)

    def best_psnr(self) -> float:
        """Of the best checkpoint; minus infinity if there is none that says so."""
        try:
            text = (intact_folder(self.folder / BEST) / VALIDATION_FILE).read_text(encoding="utf-8")
            return json.loads(text)["psnr"]
        except (FileNotFoundError, ValueError, KeyError):
            return float("-inf")

    def keep_if_best(self, psnr: float, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """With a higher PSNR than the best one so far, keeps this state as the best."""
        if not psnr > self.best_psnr():
            return
        step = values["step"]
        source = self.path(step) if self._saved == values else self.save(tensors, values)
        with replacing_folder(self.folder / BEST) as part:
            for path in source.iterdir():
                _link_or_copy(path, part / path.name)
            about = json.dumps({"step": step, "psnr": psnr}) + "\n"
            (part / VALIDATION_FILE).write_text(about, encoding="utf-8")

    def set_aside(self) -> None:
        """Moves what an earlier run left here into a folder beside this one."""
        earlier = [*self.steps().values(), self.folder / BEST]
        earlier = [path for path in earlier if path.exists()]
        if not earlier:
            return
        names = (self.folder.with_name(f"{self.folder.name}-{number}") for number in count(1))
        aside = next(name for name in names if not name.exists())
        aside.mkdir()
        for path in earlier:
            path.rename(aside / path.name)

    def _tidy(self) -> None:
        """Takes up what a killed process left: what is whole gets its name, the rest goes."""
        for name in ("step-*", BEST):
            for path in self.folder.glob(f".{name}.old"):
                proper = self.folder / path.name.removeprefix(".").removesuffix(".old")
                shutil.rmtree(path) if proper.exists() else os.replace(path, proper)
            for path in self.folder.glob(f".{name}.part"):
                shutil.rmtree(path)


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for the file, which takes no room, where the disk can have it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

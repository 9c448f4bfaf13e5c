"""Log of a run in JSONL, wandb and TensorBoard, and its provenance."""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from magvit2_pytorch.atomic import replace_json, replace_text
from magvit2_pytorch.config import flatten
from magvit2_pytorch.version import __version__

PACKAGE = Path(__file__).parents[1]


def show_in_wandb(run: Any, name: str, path: Path, step: int) -> None:
    """Logs a copy of a PNG or mp4 to a wandb run."""
    import wandb

    media_type = wandb.Image if path.suffix == ".png" else wandb.Video
    run.log({name: media_type(str(path))}, step=step)


def show_in_tensorboard(writer: Any, name: str, path: Path, step: int) -> None:
    """Logs a PNG to TensorBoard, or the one beside an mp4."""
    with Image.open(path.with_suffix(".png")) as picture:
        writer.add_images(name, np.asarray(picture)[None], step, dataformats="NHWC")
    writer.flush()


DEFAULT_PROJECT = "magvit2"
RUN_FILE = "run.json"


class Tracking:
    """Logs numbers by name and step to a file and all trackers.

    The folder gets `log.jsonl` and `run.json` (see `start_metadata`). A resumed run continues the
    log, the wandb run and the TensorBoard curves. A tracker that cannot be opened raises; if one
    fails later, training continues with a warning, and another one counts its failures at the end.
    All processes may call all methods; only the main process writes. Without `use_trackers` only
    the file is written.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        options: dict[str, Any],
        use_trackers: bool = True,
    ):
        self.accelerator, self.use_trackers = accelerator, use_trackers
        self.folder, self.options = folder, options
        self.path = folder / "log.jsonl"
        self.failures: Counter[str] = Counter()
        """Number of failures of each tracker since it was opened."""
        self._project, self._run_name, self._named = DEFAULT_PROJECT, None, False
        self._is_open = False

    @property
    def _trackers(self) -> list[Any]:
        return self.accelerator.trackers if self.use_trackers else []

    # Opening and closing

    @contextmanager
    def named(self, project_name: str, run_name: str | None = None) -> Iterator[None]:
        """Logs to this project and run, and closes it at the end."""
        self._project, self._run_name, self._named = project_name, run_name, True
        with self._closing():
            try:
                yield
            finally:
                self._named = False

    @contextmanager
    def running(self, step: int) -> Iterator[None]:
        """Context of a training that starts at `step`."""
        if self.accelerator.is_main_process:
            self._move_lines_after(step)
            self._open(step, training=True)
        with self._closing():
            yield

    @contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._close_unless_named(failed=True)
            raise
        self._close_unless_named()

    def _open(self, step: int, training: bool = False) -> None:
        if self._is_open:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        run = read_run(self.folder)
        start = start_metadata(step, self.accelerator) | self.options
        if self.use_trackers and self.accelerator.log_with:
            wandb_id = run.get("wandb_id") if step else None
            self._open_trackers(start, wandb_id, step + 1 if training else None)
        for tracker in self._trackers:
            if tracker.name == "wandb":
                run["wandb_id"] = tracker.tracker.id
        run["starts"].append(start)
        replace_json(self.folder / RUN_FILE, run)
        self._is_open = True

    def _open_trackers(
        self, start: dict[str, Any], wandb_id: str | None, first_step: int | None
    ) -> None:
        wandb = {"dir": str(self.folder), "name": self._run_name}
        if wandb_id is not None and "WANDB_RUN_ID" not in os.environ:
            wandb |= {"id": wandb_id, "resume": "allow"}
        # TensorBoard then hides this step and later ones in older event files.
        tensorboard = {"purge_step": first_step}
        self.accelerator.init_trackers(
            self._project, init_kwargs={"wandb": wandb, "tensorboard": tensorboard}
        )
        for tracker in self._trackers:
            if tracker.name == "wandb":
                tracker.tracker.config.update(start, allow_val_change=True)
            elif tracker.name == "tensorboard":
                # Markdown shows indented text verbatim.
                lines = json.dumps(start, indent=2).splitlines()
                text = "\n".join(f"    {line}" for line in lines)
                tracker.tracker.add_text("run", text, start["step"])
            else:
                plain = {
                    name: value if isinstance(value, str | int | float) else json.dumps(value)
                    for name, value in flatten(start, ".").items()
                }
                tracker.store_init_configuration(plain)

    def _close_unless_named(self, failed: bool = False) -> None:
        if self._named or not self._is_open:
            return
        for tracker in self._trackers:
            if failed and tracker.name == "wandb":
                self._try(tracker.name, lambda run=tracker.tracker: run.finish(exit_code=1))
            else:
                self._try(tracker.name, tracker.finish)
        self._trackers.clear()
        for name, num_failures in self.failures.items():
            warnings.warn(f"{name} failed {num_failures} time(s) in this run", stacklevel=5)
        self.failures.clear()
        self._is_open = False

    # Logging

    def log(self, values: dict[str, float | int], step: int) -> None:
        """Logs the values of a step."""
        if not self.accelerator.is_main_process:
            return
        self._open(step)
        self._try(self.path.name, lambda: self._append({"step": step, **values}))
        for tracker in self._trackers:
            self._try(tracker.name, lambda tracker=tracker: tracker.log(values, step=step))

    def log_pictures(self, paths: dict[str, Path], step: int) -> None:
        """Shows PNG and mp4 files in wandb and TensorBoard, by name."""
        if not self.accelerator.is_main_process:
            return
        self._open(step)
        shows = {"wandb": show_in_wandb, "tensorboard": show_in_tensorboard}
        for tracker in self._trackers:
            if show := shows.get(tracker.name):
                for name, path in paths.items():
                    args = (tracker.tracker, name, path, step)
                    self._try(tracker.name, lambda show=show, args=args: show(*args))

    def _append(self, line: dict[str, float | int]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _try(self, name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            self.failures[name] += 1
            if self.failures[name] == 1:
                warnings.warn(
                    f"{name} failed, training continues ({type(error).__name__}: {error})",
                    stacklevel=4,
                )

    def _move_lines_after(self, step: int) -> None:
        """Moves incomplete lines and lines of later steps to another file."""
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8")
        remaining, moved = [], []
        for line in text.splitlines():
            values = _parse(line)
            is_later = values is None or values["step"] > step
            (moved if is_later else remaining).append(f"{line}\n")
        if moved:
            path = self.path.with_name(f"{self.path.stem}-after-step-{step}.jsonl")
            with path.open("a", encoding="utf-8") as file:
                file.writelines(moved)
        if "".join(remaining) != text:
            replace_text(self.path, "".join(remaining))


def read_log(path: Path) -> list[dict[str, float | int]]:
    """Reads a log, without lines that a crash cut short."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in map(_parse, lines) if line is not None]


def read_run(folder: Path) -> dict[str, Any]:
    """The record of a run: `starts`, oldest first, and wandb's id."""
    path = folder / RUN_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"starts": []}


def start_metadata(step: int, accelerator: Accelerator) -> dict[str, Any]:
    """Metadata of a start or resume: step, time, device, versions."""
    device = accelerator.device
    on_gpu = device.type == "cuda"
    return {
        "step": step,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device),
        "num_processes": accelerator.num_processes,
        "code": {
            "version": __version__,
            "commit": git_commit(PACKAGE.parent),
            "source": source_hash(),
        },
        "libraries": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
        },
    }


def source_hash(folder: Path = PACKAGE) -> str:
    """First 12 digits of the SHA-256 of all modules, uncommitted changes included."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def git_commit(folder: Path) -> str | None:
    """Commit of a checkout; None without one or if git fails."""
    if not (folder / ".git").exists():  # git would find a repository around a virtual environment
        return None
    try:
        command = ["git", "rev-parse", "--verify", "HEAD"]
        result = subprocess.run(
            command, cwd=folder, capture_output=True, check=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _parse(text: str) -> dict[str, float | int] | None:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None

"""Where numbers go: a JSONL file always; wandb, TensorBoard and the like when asked."""

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from magvit2_pytorch.data.replace_file import replacing
from magvit2_pytorch.training.run_record import describe_start, read_run, write_run
from magvit2_pytorch.training.tracked_pictures import show_in_tensorboard, show_in_wandb

DEFAULT_PROJECT = "magvit2"


class Tracking:
    """Writes flat dictionaries of numbers, under the same names and steps everywhere.

    The folder gets `log.jsonl` and `run.json` (see `describe_start`). A run that goes on from a
    checkpoint goes on in the same log, wandb run and TensorBoard curves; one that begins at step 0
    finds those of an earlier run given a number and out of its way.

    A tracker that cannot be opened raises. One that fails later (a full disk, a lost service) costs
    no training: it is named in a warning, and what it missed is counted and said at the end.
    Only the main process writes; others may call everything too.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, options: dict[str, Any]):
        self.accelerator = accelerator
        self.folder = folder
        self.options = options
        self.path = folder / "log.jsonl"
        self._record = folder / "run.json"
        self.missed: Counter[str] = Counter()
        """How often each tracker failed since it was opened."""
        self._project, self._run_name, self._named = DEFAULT_PROJECT, None, False
        self._is_open = False

    # From opening to closing

    @contextmanager
    def named(self, project_name: str, run_name: str | None = None) -> Iterator[None]:
        """What is logged inside goes to this project and run, which are closed at the end."""
        self._project, self._run_name, self._named = project_name, run_name, True
        with self._closing():
            try:
                yield
            finally:
                self._named = False

    @contextmanager
    def running(self, step: int) -> Iterator[None]:
        """Around a training from `step` on; lines of later steps are put aside."""
        if self.accelerator.is_main_process:
            if step:
                self._put_aside_after(step)
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
        if step == 0:
            self._number_earlier_run()
        run = read_run(self._record)
        start = describe_start(step, self.accelerator) | self.options
        if self.accelerator.log_with:
            self._open_trackers(start, run.get("wandb_id"), step + 1 if training else None)
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb":
                run["wandb_id"] = tracker.tracker.id
        run["starts"].append(start)
        write_run(self._record, run)
        self._is_open = True

    def _open_trackers(
        self, start: dict[str, Any], wandb_id: str | None, first_step: int | None
    ) -> None:
        wandb = {"dir": str(self.folder), "name": self._run_name}
        if wandb_id is not None and "WANDB_RUN_ID" not in os.environ:
            wandb |= {"id": wandb_id, "resume": "allow"}
        # TensorBoard then hides what an older file says of this step and later ones.
        tensorboard = {"purge_step": first_step}
        self.accelerator.init_trackers(
            self._project, init_kwargs={"wandb": wandb, "tensorboard": tensorboard}
        )
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb":
                tracker.tracker.config.update(start, allow_val_change=True)
            elif tracker.name == "tensorboard":
                # Indented, Markdown leaves it as it is.
                lines = json.dumps(start, indent=2).splitlines()
                text = "\n".join(f"    {line}" for line in lines)
                tracker.tracker.add_text("run", text, start["step"])
            else:
                tracker.store_init_configuration(_flat(start))

    def _close_unless_named(self, failed: bool = False) -> None:
        if self._named or not self._is_open:
            return
        for tracker in self.accelerator.trackers:
            if failed and tracker.name == "wandb":
                self._try(tracker.name, lambda run=tracker.tracker: run.finish(exit_code=1))
            else:
                self._try(tracker.name, tracker.finish)
        self.accelerator.trackers.clear()
        for name, times in self.missed.items():
            warnings.warn(f"{name} failed {times} time(s) in this run", stacklevel=5)
        self.missed.clear()
        self._is_open = False

    # Logging

    def log(self, values: dict[str, float | int], step: int) -> None:
        """One line: the step and everything measured at it."""
        if not self.accelerator.is_main_process:
            return
        self._open(step)
        self._try(self.path.name, lambda: self._append({"step": step, **values}))
        for tracker in self.accelerator.trackers:
            self._try(tracker.name, lambda tracker=tracker: tracker.log(values, step=step))

    def log_pictures(self, paths: dict[str, Path], step: int) -> None:
        """Shows PNG and mp4 files, each under its name; the files stay where they are."""
        if not self.accelerator.is_main_process:
            return
        self._open(step)
        shows = {"wandb": show_in_wandb, "tensorboard": show_in_tensorboard}
        for tracker in self.accelerator.trackers:
            if show := shows.get(tracker.name):
                for name, path in paths.items():
                    place = (tracker.tracker, name, path, step)
                    self._try(tracker.name, lambda show=show, place=place: show(*place))

    def _append(self, line: dict[str, float | int]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _try(self, name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            self.missed[name] += 1
            if self.missed[name] == 1:
                warnings.warn(
                    f"{name} failed, training goes on ({type(error).__name__}: {error})",
                    stacklevel=4,
                )

    # Earlier runs and earlier attempts

    def _number_earlier_run(self) -> None:
        """log.jsonl becomes log-1.jsonl, or -2; its record and TensorBoard's files likewise."""
        events = self.folder / self._project
        files = (self.path, self._record)
        number = next(
            number
            for number in count(1)
            if not any(_numbered(path, number).exists() for path in (*files, events))
        )
        for path in files:
            if path.exists():
                path.rename(_numbered(path, number))
        # Not the folder itself: a project may be called like one that holds other things.
        for path in events.glob("events.out.tfevents.*"):
            _numbered(events, number).mkdir(exist_ok=True)
            path.rename(_numbered(events, number) / path.name)

    def _put_aside_after(self, step: int) -> None:
        """Moves lines of later steps, and what a crash left half written, to a file of their own.

        They were logged after the checkpoint that training goes on from, and will be again.
        """
        if not self.path.exists():
            return
        before = self.path.read_text(encoding="utf-8")
        kept, aside = [], []
        for text in before.splitlines():
            line = _parse(text)
            (aside if line is None or line["step"] > step else kept).append(f"{text}\n")
        if aside:
            name = self.path.with_name(f"{self.path.stem}-after-step-{step}.jsonl")
            with name.open("a", encoding="utf-8") as file:
                file.writelines(aside)
        if "".join(kept) != before:
            with replacing(self.path) as part:
                part.write_text("".join(kept), encoding="utf-8")


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def read_log(path: Path) -> list[dict[str, float | int]]:
    """The lines of a log, oldest first; one cut short by a crash is left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in map(_parse, lines) if line is not None]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Names like training.learning_rate, for trackers that know no nesting."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, str | int | float)
            flat[f"{prefix}{name}"] = value if plain else json.dumps(value)
    return flat


def _parse(text: str) -> dict[str, float | int] | None:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None

"""Where numbers go: a JSONL file always, wandb and TensorBoard when asked."""

import json
from itertools import count
from pathlib import Path
from typing import Any

from accelerate import Accelerator


class Tracking:
    """Writes one flat dictionary of numbers a step, under the same names everywhere."""

    def __init__(self, accelerator: Accelerator, folder: Path):
        self.accelerator = accelerator
        self.path = folder / "log.jsonl"
        self.started = False

    def start(
        self, project_name: str, run_name: str | None = None, config: dict[str, Any] | None = None
    ) -> None:
        """Opens the trackers; without a call the names are chosen by `log`."""
        self.started = True
        if not self.accelerator.log_with:
            return
        kwargs = {"wandb": {"name": run_name, "dir": str(self.path.parent)}} if run_name else {}
        flat = {
            k: v if isinstance(v, int | float | str | bool) else str(v)
            for k, v in (config or {}).items()
        }
        self.accelerator.init_trackers(project_name, config=flat, init_kwargs=kwargs)

    def set_aside(self) -> None:
        """Gives the log of an earlier run in the same folder a number, and starts a new one."""
        if self.accelerator.is_main_process and self.path.exists():
            names = (self.path.with_name(f"log-{number}.jsonl") for number in count(1))
            self.path.rename(next(name for name in names if not name.exists()))

    def log(self, values: dict[str, float | int], step: int) -> None:
        """One line: the step and everything measured at it."""
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.accelerator.log_with:
            self.accelerator.log(values, step=step)

    def log_video(self, name: str, path: Path, step: int) -> None:
        """Shows a written video in wandb, if that is on; elsewhere the file speaks for itself."""
        for tracker in self.accelerator.trackers if self.accelerator.is_main_process else ():
            if tracker.name == "wandb":
                import wandb

                tracker.log({name: wandb.Video(str(path), format=path.suffix[1:])}, step=step)

    def end(self) -> None:
        if self.started and self.accelerator.log_with:
            self.accelerator.end_training()
        self.started = False


def read_log(path: Path) -> list[dict[str, float | int]]:
    """The lines of a log, oldest first; a last line cut short by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines

"""The progress bar of the commands."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from magvit2_pytorch.pipelines.progress import FileProgress, Plan


class ProgressBar(FileProgress):
    """A bar on a terminal, and lines of text beside it.

    It counts inputs from `planned` on, and before the frames of one input. `name` stands before
    it. `stop` is asked after each callback; if it is true, `KeyboardInterrupt` is raised.
    `plan_text` gives the line that announces a plan.
    """

    def __init__(
        self,
        unit: str,
        name: str | None = None,
        hidden: bool = False,
        stop: Callable[[], bool] = lambda: False,
        plan_text: Callable[[Plan], str] = lambda plan: "",
    ):
        from tqdm import tqdm

        disable = True if hidden else None
        self.bar = tqdm(desc=name, unit=unit, disable=disable, leave=False, dynamic_ncols=True)
        self.stop, self.plan_text = stop, plan_text
        self.num_done, self.total = 0, None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def planned(self, plan: Plan) -> None:
        if text := self.plan_text(plan):
            self._print(text)
        self.num_done, self.total = plan.num_inputs - plan.num_to_do, plan.num_inputs
        self.bar.reset(self.total)
        # Inputs of earlier runs must not enter the estimate of the time left.
        self.bar.n = self.bar.initial = self.num_done
        self.bar.refresh()

    def frames(self, path: str, done: int, total: int) -> None:
        total = max(done, total)  # a file may have more frames than its header says
        if self.total is not None:
            self.bar.set_postfix_str(f"{Path(path).name} {done}/{total}")
        else:
            self._show(done, total)
            if not done:  # the first frames may take a minute
                self.bar.refresh()
        self._stop_if_asked()

    def finished(self, path: str, reason: str | None) -> None:
        if reason is not None:
            self._print(f"magvit2: skipped: {path}: {reason}", sys.stderr)
        self.counted(self.num_done + 1, self.total)

    def counted(self, done: int, total: int) -> None:
        self.num_done, self.total = done, total
        self._show(done, total)
        self._stop_if_asked()

    def damaged(self, file: Path, reason: str) -> None:
        text = f"magvit2: warning: {file}: {reason}; its inputs are tokenized again"
        self._print(text, sys.stderr)

    def written(self, file: Path) -> None:
        self._print(f"{file}: written after {self.num_done} of {self.total} files")

    def _show(self, done: int, total: int) -> None:
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def _print(self, line: str, file: Any = None) -> None:
        self.bar.write(line, file=file or sys.stdout)

    def _stop_if_asked(self) -> None:
        if self.stop():
            raise KeyboardInterrupt


@contextmanager
def interruptible_bar(unit: str, **options: Any) -> Iterator[ProgressBar]:
    """A bar of work that Ctrl-C stops between two inputs."""
    # Imported here, because it takes a second.
    from magvit2_pytorch.training.processes import Interruptible

    with (
        Interruptible() as interrupt,
        ProgressBar(unit, stop=lambda: interrupt.requested, **options) as bar,
    ):
        yield bar

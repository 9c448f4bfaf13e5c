"""Progress bar and interruption of `magvit2 evaluate`.

Imported only when needed, because its own imports take a second.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from magvit2_pytorch.evaluation.evaluator import EvaluationProgress
from magvit2_pytorch.training.processes import Interruptible


@contextmanager
def evaluation_bar() -> Iterator[EvaluationProgress]:
    """A progress bar over clips; Ctrl-C stops between two clips."""
    with (
        tqdm(unit=" clips", disable=None, leave=False, dynamic_ncols=True) as bar,
        Interruptible() as interrupt,
    ):
        yield _EvaluationBar(bar, interrupt)


class _EvaluationBar(EvaluationProgress):
    def __init__(self, bar: tqdm, interrupt: Interruptible):
        self.bar, self.interrupt = bar, interrupt

    def planned(self, done_before: int, max_total: int) -> None:
        if done_before:
            self.bar.write(f"{done_before} clips were measured before", file=sys.stdout)
        self.bar.reset(max_total)
        # Clips of earlier runs must not enter the estimate of the time left.
        self.bar.n = self.bar.initial = done_before
        self.bar.refresh()

    def measured(self, done: int, max_total: int) -> None:
        self.bar.total = max_total
        self.bar.update(done - self.bar.n)
        if self.interrupt.requested:
            raise KeyboardInterrupt

    def skipped(self, name: str, reason: str) -> None:
        self.bar.write(f"magvit2: skipped: {name}: {reason}", file=sys.stderr)

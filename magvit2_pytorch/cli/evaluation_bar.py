"""The bar of `magvit2 evaluate`, and what ends it.

Imported when it is asked for: its imports take a second.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from magvit2_pytorch.evaluation.evaluate import EvaluationProgress
from magvit2_pytorch.training.interrupt import Interruptible


@contextmanager
def evaluation_bar() -> Iterator[EvaluationProgress]:
    """On a terminal a bar over clips with the time left; Ctrl-C ends it between two clips."""
    with (
        tqdm(unit=" clips", disable=None, leave=False, dynamic_ncols=True) as bar,
        Interruptible() as interrupt,
    ):
        yield _EvaluationBar(bar, interrupt)


class _EvaluationBar(EvaluationProgress):
    def __init__(self, bar: tqdm, interrupt: Interruptible):
        self.bar, self.interrupt = bar, interrupt

    def planned(self, done_before: int, at_most: int) -> None:
        if done_before:
            self.bar.write(f"{done_before} clips were measured before", file=sys.stdout)
        self.bar.reset(at_most)
        # What was done before says nothing of the time left.
        self.bar.n = self.bar.initial = done_before
        self.bar.refresh()

    def measured(self, done: int, at_most: int) -> None:
        self.bar.total = at_most
        self.bar.update(done - self.bar.n)
        if self.interrupt.requested:
            raise KeyboardInterrupt

    def skipped(self, name: str, reason: str) -> None:
        self.bar.write(f"magvit2: skipped: {name}: {reason}", file=sys.stderr)

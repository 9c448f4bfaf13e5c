"""Progress of work on many files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FrameCallback = Callable[[int, int], object]
"""Called with the number of frames done, starting at 0, and the expected total."""


@dataclass
class Plan:
    """Number of inputs, and of those that earlier runs finished."""

    num_inputs: int = 0
    num_done_before: int = 0
    num_failed_before: int = 0
    """Inputs that failed in an earlier run and are not retried."""

    @property
    def num_to_do(self) -> int:
        """Inputs to do when this run started."""
        return self.num_inputs - self.num_done_before - self.num_failed_before


class FileProgress:
    """Callbacks of work on many files; by default they do nothing.

    An exception in one ends the run; finished results are kept.
    """

    def planned(self, plan: Plan) -> None:
        """The inputs to do are known."""

    def frames(self, path: str, done: int, total: int) -> None:
        """`done` of about `total` frames of an input are processed."""

    def finished(self, path: str, reason: str | None) -> None:
        """An input is done, or cannot be used for this reason."""

    def counted(self, done: int, total: int) -> None:
        """`done` inputs are done, of a total that is now known better."""

    def damaged(self, file: Path, reason: str) -> None:
        """A file of earlier results is damaged; its inputs are done again."""

    def written(self, file: Path) -> None:
        """A file of results is written."""

"""Job after job: a bar for each, a line for each, and what to do with files that fail."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from magvit2_pytorch.cli.errors import UserError
from magvit2_pytorch.cli.jobs import Job

OnFrames = Callable[[int, int], None]


def run_jobs(jobs: Sequence[Job], work: Callable[[Job, OnFrames], str]) -> int:
    """Does every job and prints what `work` says of it; returns the exit status.

    A file that cannot be used is named on stderr and skipped. The status is 0 if any file
    worked; a single file that does not is an error.
    """
    from magvit2_pytorch.data import UnusableMedia
    from magvit2_pytorch.evaluation.compatibility import TokenizerMismatch

    skipped = 0
    for job in jobs:
        try:
            with frames_bar(job.source.name) as on_frames:
                said = work(job, on_frames)
        except (UnusableMedia, TokenizerMismatch) as error:
            if len(jobs) == 1:
                raise UserError(str(error)) from error
            print(f"magvit2: skipped: {error}", file=sys.stderr)
            skipped += 1
        else:
            print(f"{job.target}: {said}", flush=True)
    if skipped:
        print(f"magvit2: {skipped} of {len(jobs)} files were skipped", file=sys.stderr)
    return 1 if skipped == len(jobs) else 0


def frames(number: int) -> str:
    """A number of frames in words."""
    return "1 frame" if number == 1 else f"{number} frames"


@contextmanager
def frames_bar(name: str) -> Iterator[OnFrames]:
    """A progress bar over frames, on a terminal only; gives the function that moves it."""
    from tqdm import tqdm

    with tqdm(desc=name, unit="frame", disable=None, leave=False, dynamic_ncols=True) as bar:

        def on_frames(done: int, total: int) -> None:
            bar.total = max(done, total)
            bar.update(done - bar.n)

        yield on_frames

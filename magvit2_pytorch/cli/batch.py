"""Job after job: a bar for each, a line for each, and what to do with files that fail."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from magvit2_pytorch.cli.errors import UserError
from magvit2_pytorch.cli.jobs import Job

FrameCounter = Callable[[int, int], None]


def run_jobs(jobs: Sequence[Job], work: Callable[[Job, FrameCounter], str]) -> int:
    """Does every job and prints what `work` says of it; returns the exit status.

    A file that cannot be used is named on stderr and skipped. The status is 0 if any file
    worked; a single file that does not is an error. SIGTERM ends as Ctrl-C does, by an exception
    (`SystemExit`), so that no part of a file stays behind; what a killed run left is removed.
    """
    from magvit2_pytorch.data import UnusableMedia
    from magvit2_pytorch.data.replace_file import remove_abandoned
    from magvit2_pytorch.evaluation.compatibility import TokenizerMismatch

    for folder in {job.target.parent for job in jobs}:
        if folder.is_dir():
            remove_abandoned(folder)
    skipped = 0
    for number, job in enumerate(jobs, start=1):
        place = f"[{number}/{len(jobs)}] " if len(jobs) > 1 else ""
        try:
            with _signals_as_exceptions(), frames_bar(place + job.source.name) as on_frames:
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
def frames_bar(name: str) -> Iterator[FrameCounter]:
    """A progress bar over frames, on a terminal only; gives the function that moves it.

    It tells the time left, by the number of frames that the file promises.
    """
    from tqdm import tqdm

    with tqdm(desc=name, unit=" frames", disable=None, leave=False, dynamic_ncols=True) as bar:

        def on_frames(done: int, total: int) -> None:
            bar.total = max(done, total)
            bar.update(done - bar.n)
            if not done:  # the first frames may take a minute
                bar.refresh()

        yield on_frames


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and the terminal's end raise `SystemExit`, 128 and the signal's number.

    Unless somebody else minds them; `nohup` does. Outside the main thread nothing can be done.
    """

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    ends = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    ours = [number for number in ends if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for number in ours:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)

"""Runs jobs in sequence, with progress bars and skipped files."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from magvit2_pytorch.cli.errors import UserError
from magvit2_pytorch.cli.jobs import Job

FrameCounter = Callable[[int, int], None]
"""Called with the number of frames done and the expected total."""


def run_jobs(jobs: Sequence[Job], work: Callable[[Job, FrameCounter], str]) -> int:
    """Runs every job, prints its result and returns the exit status.

    A file that cannot be used is named on stderr and skipped. The status is 0 if at least one file
    succeeded; if the only file fails, that is an error. Like Ctrl-C, SIGTERM raises an exception
    (`SystemExit`), so that no partial file stays behind. Partial files of killed runs are removed.
    """
    from magvit2_pytorch.data import UnusableMedia
    from magvit2_pytorch.data.replace_file import remove_abandoned
    from magvit2_pytorch.evaluation.compatibility import TokenizerMismatch

    for folder in {job.target.parent for job in jobs}:
        if folder.is_dir():
            remove_abandoned(folder)
    skipped = 0
    for number, job in enumerate(jobs, start=1):
        counter = f"[{number}/{len(jobs)}] " if len(jobs) > 1 else ""
        try:
            with _signals_as_exceptions(), frames_bar(counter + job.source.name) as on_frames:
                result = work(job, on_frames)
        except (UnusableMedia, TokenizerMismatch) as error:
            if len(jobs) == 1:
                raise UserError(str(error)) from error
            print(f"magvit2: skipped: {error}", file=sys.stderr)
            skipped += 1
        else:
            print(f"{job.target}: {result}", flush=True)
    if skipped:
        print(f"magvit2: {skipped} of {len(jobs)} files were skipped", file=sys.stderr)
    return 1 if skipped == len(jobs) else 0


def frame_count(number: int) -> str:
    """Text such as "1 frame" or "5 frames"."""
    return "1 frame" if number == 1 else f"{number} frames"


@contextmanager
def frames_bar(name: str) -> Iterator[FrameCounter]:
    """A progress bar over frames, shown on a terminal only.

    Yields the function that updates it. The time left is estimated from the number of frames in the
    file's header.
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
    """Makes SIGTERM and SIGHUP raise `SystemExit` with status 128 + signal number.

    Signals that already have a handler (or are ignored, as by `nohup`) stay as they are. Outside
    the main thread this does nothing.
    """

    def exit_with_status(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    signals = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    handled = [number for number in signals if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        handled = []
    for number in handled:
        signal.signal(number, exit_with_status)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)

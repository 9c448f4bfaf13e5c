"""Input files of a command, their targets, and processes that share them."""

import errno
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.cli.options import UserError, user_errors
from magvit2_pytorch.cli.progress_bar import ProgressBar
from magvit2_pytorch.pipelines.progress import FrameCallback


class Job(NamedTuple):
    """A file to read and the file to write."""

    source: Path
    target: Path


class Process(NamedTuple):
    """Rank of a process among `world_size`, and among those on its machine."""

    rank: int
    world_size: int
    local_rank: int

    @property
    def is_single(self) -> bool:
        return self.world_size == 1

    @property
    def prefix(self) -> str:
        """Prefix of the lines that this process prints."""
        return "" if self.is_single else f"process {self.rank + 1} of {self.world_size}: "

    def select_gpu(self) -> None:
        """Makes "cuda" this process's GPU; processes may share GPUs."""
        import torch

        if not self.is_single and torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())


def current_process() -> Process:
    """The process by RANK, WORLD_SIZE and LOCAL_RANK, or the only one."""
    defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": os.environ.get("RANK", "0")}
    values = {name: os.environ.get(name) or default for name, default in defaults.items()}
    if not all(text.isdecimal() for text in values.values()):
        raise UserError(f"{values}: these environment variables must be numbers, or unset")
    rank, world_size, local_rank = map(int, values.values())
    if rank >= world_size:
        raise UserError(f"RANK={rank} and WORLD_SIZE={world_size}: the rank must be smaller")
    return Process(rank, world_size, local_rank)


def plan_jobs(
    inputs: Sequence[str],
    output: str,
    sources: Sequence[str],
    target_suffix: Callable[[Path], str],
    file_suffixes: Sequence[str],
) -> list[Job]:
    """Makes a job for each input file.

    A folder stands for all readable files below it. `sources` are the suffixes that can be read;
    `target_suffix` returns the suffix of the output for a source. `output` names a file if it ends
    in one of `file_suffixes`, which requires a single input file; otherwise it is a folder, which
    mirrors the names and sub-folders of the inputs. Raises `UserError` before any work if an input
    is missing or an output is in the way.
    """
    target = as_path(output)
    found = [pair for path in inputs for pair in _find_sources(as_path(path), sources, target)]
    one_file = len(inputs) == 1 and not as_path(inputs[0]).is_dir()
    if has_suffix(target, file_suffixes) and not target.is_dir():
        if not one_file:
            raise UserError(f"{output} names a file, but the input is not one file: name a folder")
        jobs = [Job(found[0][0], target)]
    else:
        _check_folder(target, one_file, file_suffixes)
        jobs = _mirror(found, target, sources, target_suffix)
        if any(has_suffix(job.target, sources) for job in jobs):
            from magvit2_pytorch.media.sources import check_not_output

            with user_errors():
                for path in inputs:
                    check_not_output(as_path(path), [target])
    for job in jobs:
        # Not Path.resolve, which raises on a link to itself.
        if os.path.realpath(job.target) == os.path.realpath(job.source):
            raise UserError(f"{job.source} would be replaced by its own output: choose another -o")
    return jobs


def plan_media_jobs(inputs: Sequence[str], output: str) -> list[Job]:
    """Jobs from videos and images to files of the same kind."""
    from magvit2_pytorch.media.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES
    from magvit2_pytorch.pipelines import media_file

    def suffix(path: Path) -> str:
        return media_file.SUFFIX_OF[media_file.media_kind(path)]

    sources = VIDEO_SUFFIXES + IMAGE_SUFFIXES
    jobs = plan_jobs(inputs, output, sources, suffix, media_file.ALL_WRITABLE)
    with user_errors():
        for job in jobs:
            media_file.check_writable(job.target, media_file.media_kind(job.source))
    return jobs


def has_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    """True if the name ends in one of `suffixes`, ignoring case."""
    return path.name.lower().endswith(tuple(suffixes))


def _find_sources(given: Path, sources: Sequence[str], target: Path) -> list[tuple[Path, Path]]:
    """Files outside `target`, and their paths relative to the named folder."""
    from magvit2_pytorch.media.sources import log_left_out, walk_inputs
    from magvit2_pytorch.media.unusable import printable

    if not given.exists():
        raise UserError(f"there is no {given}")
    known = ", ".join(suffix.lstrip(".") for suffix in sources)
    if given.is_dir():
        files = sorted(walk_inputs(given, [target]))
        paths = [path for path in files if has_suffix(path, sources)]
        if not paths:
            raise UserError(f"{given} holds no file that can be used here ({known})")
        log_left_out(printable(given), [path for path in files if not has_suffix(path, sources)])
        return [(path, path.relative_to(given)) for path in paths]
    if not has_suffix(given, sources):
        raise UserError(f"{given} cannot be used here: give a folder, or a file ({known})")
    return [(given, Path(given.name))]


def _check_folder(target: Path, one_file: bool, file_suffixes: Sequence[str]) -> None:
    if target.is_dir():
        return
    if target.exists():
        raise UserError(f"{target} is a file: name a folder")
    if one_file and target.suffix:
        known = ", ".join(file_suffixes)
        raise UserError(f"cannot write {target}: use {known}, or name a folder")


def _mirror(
    found: Sequence[tuple[Path, Path]],
    folder: Path,
    sources: Sequence[str],
    target_suffix: Callable[[Path], str],
) -> list[Job]:
    """Jobs whose targets mirror the sources below `folder`.

    `clip.mp4` becomes `clip` + suffix, or `clip.mp4` + suffix if there is also a `clip.gif`.
    """
    short_targets = [
        folder / relative.with_name(_stem(relative, sources) + target_suffix(source))
        for source, relative in found
    ]
    counts = Counter(short_targets)
    targets = [
        target
        if counts[target] == 1
        else folder / relative.with_name(relative.name + target_suffix(source))
        for target, (source, relative) in zip(short_targets, found, strict=True)
    ]
    by_target: dict[Path, Path] = {}
    for target, (source, _) in zip(targets, found, strict=True):
        if by_target.setdefault(target, source) != source:
            raise UserError(
                f"{by_target[target]} and {source} would both become {target}: "
                "give their common folder"
            )
    return [Job(source, target) for target, source in by_target.items()]


def _stem(path: Path, sources: Sequence[str]) -> str:
    """The name without the longest of `sources` that it ends in."""
    suffix = max((s for s in sources if path.name.lower().endswith(s)), key=len)
    return path.name[: -len(suffix)]


def run_jobs(jobs: Sequence[Job], work: Callable[[Job, FrameCallback], str]) -> int:
    """Runs every job, prints its result and returns the exit status.

    A file that cannot be used or written is named on stderr and skipped. The status is 0 if at
    least one file succeeded and every output could be written; if the only file fails, that is an
    error. A full disk ends the run. Like Ctrl-C, SIGTERM raises an exception (`SystemExit`): no
    partial file stays behind. Partial files of killed runs are removed.
    """
    from magvit2_pytorch.atomic import remove_abandoned
    from magvit2_pytorch.functional import NotFinite
    from magvit2_pytorch.media.unusable import UnusableMedia, printable
    from magvit2_pytorch.pipelines.fingerprint import TokenizerMismatch

    for folder in {job.target.parent for job in jobs}:
        with suppress(OSError):  # reported when its files are written
            remove_abandoned(folder)
    skipped, failed = 0, 0
    for number, job in enumerate(jobs, start=1):
        counter = f"[{number}/{len(jobs)}] " if len(jobs) > 1 else ""
        try:
            with _signals_as_exceptions(), ProgressBar(" frames", counter + job.source.name) as bar:
                result = work(job, partial(bar.frames, job.source.name))
        except (UnusableMedia, TokenizerMismatch, NotFinite) as error:
            if len(jobs) == 1:
                raise UserError(str(error)) from error
            print(f"magvit2: skipped: {error}", file=sys.stderr)
            skipped += 1
        except OSError as error:
            if len(jobs) == 1 or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE):
                raise
            target = printable(job.target)
            print(f"magvit2: cannot write {target}: {error.strerror or error}", file=sys.stderr)
            failed += 1
        else:
            print(f"{job.target}: {result}", flush=True)
    if skipped:
        print(f"magvit2: {skipped} of {len(jobs)} files were skipped", file=sys.stderr)
    if failed:
        print(f"magvit2: {failed} of {len(jobs)} files could not be written", file=sys.stderr)
    return 1 if failed or skipped == len(jobs) else 0


def frame_count(number: int) -> str:
    """Text such as "1 frame" or "5 frames"."""
    return "1 frame" if number == 1 else f"{number} frames"


@contextmanager
def resumable() -> Iterator[None]:
    """Says after Ctrl-C that the same command continues."""
    try:
        yield
    except KeyboardInterrupt:
        print("magvit2: run the same command again to continue", file=sys.stderr)
        raise


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

"""A loader's worker that dies: which one, at which file, and what to do about it."""

import os
import re
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children

# What torch says, from wherever this process happens to be when it hears of the death.
_TORCH_SAYS = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*?)\.?\s*$", re.DOTALL)

_SLOT_BYTES = 4096
_slot: tuple[int, int] | None = None
"""In a worker: the open board, and where its own place on it begins."""

_boards: "weakref.WeakSet[FileBoard]" = weakref.WeakSet()


class DeadWorker(RuntimeError):
    """A worker process of a loader died; the message names it, its last file and the way out."""


class FileBoard:
    """A small file on which each worker of one loader keeps the name of the file it is at.

    It is the loader's `worker_init_fn`, and survives what a dead worker could not tell.
    """

    def __init__(self):
        handle, self.file = tempfile.mkstemp(prefix="magvit2_workers_")
        os.close(handle)
        self._finalizer = weakref.finalize(self, _remove, self.file, os.getpid())
        _boards.add(self)

    def __getstate__(self) -> dict:
        return {"file": self.file}

    def __call__(self, worker: int) -> None:
        """Runs in a worker as it starts."""
        global _slot
        _slot = os.open(self.file, os.O_WRONLY), worker * _SLOT_BYTES
        note_file("")

    def read(self) -> dict[int, tuple[int, str]]:
        """Number and last file of each worker, by its process id."""
        found = {}
        with suppress(OSError), open(self.file, "rb") as board:
            for worker, slot in enumerate(iter(lambda: board.read(_SLOT_BYTES), b"")):
                pid, _, path = slot.rstrip(b"\0").decode("utf-8", "replace").partition(" ")
                if pid:
                    found[int(pid)] = worker, path
        return found

    @contextmanager
    def watching(self) -> Iterator[None]:
        """As `naming_dead_workers`, around asking this loader for a batch.

        A worker that dies while it hands one over is first seen as a connection that broke.
        """
        try:
            with naming_dead_workers():
                yield
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            if dead := self._dead():
                raise DeadWorker(_message(dead, "died")) from error
            raise

    def _dead(self) -> list[int]:
        # The connection of a process breaks a moment before the system counts it among the dead.
        for _ in range(20):
            alive = {process.pid for process in active_children()}
            if dead := [pid for pid in self.read() if pid not in alive]:
                return dead
            time.sleep(0.05)
        return []


def note_file(path: str | os.PathLike) -> None:
    """To be called before a file is opened; in a process that is no worker it does nothing."""
    if _slot is not None:
        board, start = _slot
        entry = f"{os.getpid()} {os.fspath(path)}".encode("utf-8", "replace")[:_SLOT_BYTES]
        os.lseek(board, start, os.SEEK_SET)
        os.write(board, entry.ljust(_SLOT_BYTES, b"\0"))


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Turns torch's error about a dead worker into `DeadWorker`.

    Torch raises it as a signal arrives, not only where batches are asked for: put this around
    all that runs while a loader does.
    """
    try:
        yield
    except RuntimeError as error:
        said = None if isinstance(error, DeadWorker) else _TORCH_SAYS.search(str(error))
        if said is None:
            raise
        raise DeadWorker(_message([int(pid) for pid in said[1].split(",")], said[2])) from error


def _message(pids: list[int], how: str) -> str:
    workers = " and ".join(map(_describe, pids))
    return (
        f"{workers} {how}. If it was killed, then most likely for want of memory: use fewer "
        "num_workers or smaller clips. If it dies at the same file again, take that file away; "
        "num_workers=0 reads in the main process, which shows what is wrong"
    )


def _describe(pid: int) -> str:
    known = {pid: place for board in list(_boards) for pid, place in board.read().items()}
    worker, path = known.get(pid, ("", ""))
    at = f", whose last file was {path}," if path else ""
    return f"data worker {worker} (process {pid}){at}"


def _remove(file: str, owner: int) -> None:
    # A forked worker inherits the finalizer and must leave the board to its parent.
    if os.getpid() == owner:
        with suppress(OSError):
            os.remove(file)

"""Data workers, and errors that name a dead one's last file."""

import gc
import os
import re
import time
import weakref
from collections import ChainMap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import active_children
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from magvit2_pytorch.media.unusable import temporary_file

# Torch's message; it reaches this process at whatever line runs when the signal arrives.
_TORCH_MESSAGE = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*?)\.?\s*$", re.DOTALL
)

_SLOT_BYTES = 4096
_slot: tuple[int, int] | None = None
"""In a worker: descriptor of the shared file, and the offset of the worker's slot in it."""

_all_worker_files: "weakref.WeakSet[WorkerFiles]" = weakref.WeakSet()


class DeadWorker(RuntimeError):
    """A data worker died; the message names it and its last file."""


class EndlessLoader(DataLoader):
    """Loader of endless batches that names dead workers, see `DeadWorker`."""

    def __init__(self, dataset: Dataset, num_workers: int, seed: int, **options: Any):
        super().__init__(
            dataset,
            num_workers=num_workers,
            worker_init_fn=WorkerFiles() if num_workers else None,
            # Without its own generator the loader draws from the global state, which then
            # differs after resuming.
            generator=torch.Generator().manual_seed(seed),
            **options,
        )

    def __iter__(self) -> Iterator[Any]:
        worker_files = self.worker_init_fn
        # A decoder that is garbage in this process must not be collected in a forked worker:
        # it would wait forever for threads that the fork did not copy.
        if worker_files:
            gc.collect()
        batches = super().__iter__()
        while True:
            with worker_files.naming_dead_workers() if worker_files else nullcontext():
                batch = next(batches)
            yield batch

    def check_worker_number_rationality(self) -> None:
        """Accepts any number, where torch warns of more than cores."""


class WorkerFiles:
    """Temporary file with the last opened file of each data worker."""

    def __init__(self):
        self.file = temporary_file(self, prefix="magvit2_workers_")
        _all_worker_files.add(self)

    def __getstate__(self) -> dict:
        return {"file": self.file}

    def __call__(self, worker: int) -> None:
        """Runs in a worker as it starts."""
        global _slot
        _slot = os.open(self.file, os.O_WRONLY), worker * _SLOT_BYTES
        record_file("")

    def read(self) -> dict[int, tuple[int, str]]:
        """Number and last file of each worker, by its process id."""
        workers = {}
        with suppress(OSError), open(self.file, "rb") as file:
            for worker, slot in enumerate(iter(lambda: file.read(_SLOT_BYTES), b"")):
                pid, _, path = slot.rstrip(b"\0").decode("utf-8", "replace").partition(" ")
                if pid:
                    workers[int(pid)] = worker, path
        return workers

    @contextmanager
    def naming_dead_workers(self) -> Iterator[None]:
        """As the function `naming_dead_workers`, around asking this loader for a batch."""
        try:
            with naming_dead_workers():
                yield
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            # The connection to a worker that is sending a batch breaks a moment before the system
            # reports the exit: poll for a second.
            for _ in range(20):
                alive = {process.pid for process in active_children()}
                if dead := [pid for pid in self.read() if pid not in alive]:
                    raise DeadWorker(_message(dead, "died")) from error
                time.sleep(0.05)
            raise


def record_file(path: str | os.PathLike) -> None:
    """Records the file to be opened next; does nothing outside a worker."""
    if _slot is not None:
        descriptor, start = _slot
        entry = f"{os.getpid()} {os.fspath(path)}".encode("utf-8", "replace")[:_SLOT_BYTES]
        os.lseek(descriptor, start, os.SEEK_SET)
        os.write(descriptor, entry.ljust(_SLOT_BYTES, b"\0"))


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Turns torch's error about a dead worker into `DeadWorker`.

    Torch raises it when a signal arrives: put this around all code while a loader has workers.
    """
    try:
        yield
    except RuntimeError as error:
        match = None if isinstance(error, DeadWorker) else _TORCH_MESSAGE.search(str(error))
        if match is None:
            raise
        pids = [int(pid) for pid in match[1].split(",")]
        raise DeadWorker(_message(pids, match[2])) from error


def _message(pids: list[int], end: str) -> str:
    """Message about dead workers; `end` is "died" or torch's words."""
    entries, workers = ChainMap(*(files.read() for files in list(_all_worker_files))), []
    for pid in pids:
        worker, path = entries.get(pid, ("", ""))
        last_file = f", whose last file was {path}," if path else ""
        workers.append(f"data worker {worker} (process {pid}){last_file}")
    return (
        f"{' and '.join(workers)} {end}. A killed worker has most likely run out of memory: use "
        "fewer num_workers or smaller clips. If workers die at the same file again, remove that "
        "file; num_workers=0 reads in the main process, which shows the cause"
    )

"""Two processes that find each other over gloo: started once, for all workers that tests name."""

import atexit
import importlib
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

TIME_LIMIT_S = 120
DONE = "done\n"


@cache
def _ranks() -> list[subprocess.Popen]:
    """The processes, which wait for names of workers."""
    return [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(rank)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def _end() -> None:
    if _ranks.cache_info().currsize:
        for rank in _ranks():
            rank.kill()


atexit.register(_end)


def run_two_processes(worker: ModuleType, folder: Path) -> list[dict]:
    """What each rank saved. `worker.main` takes: rank, file to meet at, start of the output."""
    ranks, limit = _ranks(), threading.Timer(TIME_LIMIT_S, _end)
    limit.start()
    for rank in ranks:
        rank.stdin.write(f"{worker.__name__} {folder}\n")
        rank.stdin.flush()
    said = [rank.stdout.readline() for rank in ranks]
    limit.cancel()
    if said != [DONE, DONE]:
        _end()
        _ranks.cache_clear()
        raise AssertionError("\n".join(rank.stderr.read() for rank in ranks))
    return [torch.load(folder / f"out.{rank}", weights_only=True) for rank in (0, 1)]


def _serve(rank: int) -> None:
    for line in sys.stdin:
        name, folder = line.rstrip("\n").split(" ", 1)
        importlib.import_module(name).main(rank, f"{folder}/rendezvous", f"{folder}/out")
        sys.stdout.write(DONE)
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))

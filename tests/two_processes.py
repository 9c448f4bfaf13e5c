"""Starts a worker script twice, as two processes that find each other over gloo."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch


def run_two_processes(worker: ModuleType, folder: Path) -> list[dict]:
    """What each rank saved. The worker's arguments: rank, file to meet at, start of the output."""
    command = [sys.executable, str(worker.__file__)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(folder / "rendezvous"), str(folder / "out")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"out.{rank}", weights_only=True) for rank in (0, 1)]

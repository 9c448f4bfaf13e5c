"""Processes that are killed while they save. There are many, so nothing slow is imported."""

import os
import signal
from pathlib import Path

import torch

from magvit2_pytorch.training import checkpoints as state_module
from magvit2_pytorch.training.checkpoints import Checkpoints
from magvit2_pytorch.training.task import Best

STARTED = 0
PSNR = Best("psnr", "max")


def open_checkpoints(folder: Path, keep: int | None = None) -> Checkpoints:
    """A folder whose best checkpoint has the highest PSNR."""
    return Checkpoints(folder, keep, PSNR)


def state_of(step: int, size: int = 64) -> tuple[dict, dict]:
    """A state that says in all its parts which step it is of."""
    tensors = {"a": torch.full((size, 8), float(step)), "b": torch.tensor(step)}
    return tensors, {"step": step, "elapsed_s": step / 7}


def save_in_a_loop(folder: Path, first: int, done) -> None:
    checkpoints = open_checkpoints(folder, keep=2)
    done.value = STARTED
    for step in range(first, first + 1000):
        checkpoints.save(*state_of(step, size=20_000))
        # Every other one is the best so far, and so takes the best one's place.
        checkpoints.keep_if_best(float(step // 2), *state_of(step, size=20_000))
        done.value = step


CALLS = {
    os: ("replace", "fsync", "link", "unlink", "rmdir"),
    Path: ("mkdir", "write_bytes", "write_text"),
    state_module: ("write_tensors",),
}
"""Calls that change the disk and are not atomic together with the next one."""


def save_until_killed(folder: Path, calls_left: int) -> None:
    """Replaces a step and the best one, and dies before the n-th call that changes the disk."""
    os.fsync = lambda _: None  # for a power cut, which this is not
    left = [calls_left]

    def deadly(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for owner, names in CALLS.items():
        for name in names:
            setattr(owner, name, deadly(getattr(owner, name)))
    checkpoints = open_checkpoints(folder, keep=2)
    for step, psnr in ((2, 20.0), (3, 30.0)):
        checkpoints.save(*state_of(step))
        checkpoints.keep_if_best(psnr, *state_of(step))

"""Equal time for everyone: the same clips, the same clock, and results that outlive a break.

Imports no implementation, so that workers in any environment share it. Weights are kept on the way
and measured when training is over: measuring costs no time of training.
"""

import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class RandomClips(Dataset):
    """Random clips of frames in memory, half of them mirrored: float32 `c t h w`.

    `folder` holds a NAME.npy for each video, uint8 `t h w c`. Pixels go from `low` to 1.
    """

    def __init__(self, folder: Path, num_frames: int, size: int, low: float, seed: int):
        self.videos = [np.load(path) for path in sorted(folder.glob("*.npy"))]
        self.num_frames, self.size, self.low = num_frames, size, low
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return 64 * len(self.videos)

    def __getitem__(self, number: int) -> Tensor:
        video = self.videos[number % len(self.videos)]
        lengths = (self.num_frames, self.size, self.size)
        sizes = zip(video.shape[:3], lengths, strict=True)
        corner = [self._draw(size - length + 1) for size, length in sizes]
        clip = video[tuple(slice(at, at + n) for at, n in zip(corner, lengths, strict=True))]
        if self._draw(2):
            clip = clip[:, :, ::-1]
        clip = torch.from_numpy(clip.copy()).permute(3, 0, 1, 2).float()
        return clip / 255 * (1 - self.low) + self.low

    def _draw(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.generator))


class Point(NamedTuple):
    """Weights as they were, and when."""

    step: int
    seconds: float
    weights: dict[str, Tensor]


class Kept:
    """Weights at `num_points` even parts of a training, the last of them those it ends with."""

    def __init__(self, num_points: int):
        self.num_points = num_points
        self.points: list[Point] = []

    def offer(
        self, progress: float, step: int, seconds: float, weights: Callable[[], dict[str, Tensor]]
    ) -> None:
        """Keeps a copy of `weights()` if one is due at this share; what it ends with is not."""
        if (len(self.points) + 1) / self.num_points <= progress < 1:
            self.keep(step, seconds, weights())

    def keep(self, step: int, seconds: float, weights: dict[str, Tensor]) -> None:
        """Keeps a copy of the weights."""
        copy = {name: value.detach().clone() for name, value in weights.items()}
        self.points.append(Point(step, round(seconds, 1), copy))


def pin(core: int) -> None:
    """This process to one core and one thread."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)


def run_missing(
    folder: Path,
    names: Sequence[str],
    command: Callable[[str, int | None], list[str]],
    parallel: int = 1,
) -> list[str]:
    """Runs `command(name, core)` in a process of its own where `folder` has no NAME.json yet.

    One after the other, or `parallel` at once, each with a core of its own (else `core` is None).
    What they print goes to NAME.log. Returns the names that failed; the others are not stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cores: queue.Queue[int | None] = queue.Queue()
    available = sorted(os.sched_getaffinity(0)) if parallel > 1 else [None]
    if len(available) < parallel:
        raise ValueError(f"{parallel} at once, but this process may use {len(available)} core(s)")
    for core in available[:parallel]:
        cores.put(core)

    def run(name: str) -> bool:
        core = cores.get()
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
        try:
            with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
                done = subprocess.run(command(name, core), stdout=log, stderr=subprocess.STDOUT)
        finally:
            cores.put(core)
        if done.returncode:
            print(f"{name} failed, see {log.name}", file=sys.stderr, flush=True)
        return done.returncode == 0

    missing = [name for name in names if not (folder / f"{name}.json").exists()]
    with ThreadPoolExecutor(parallel) as pool:
        good = list(pool.map(run, missing))
    return [name for name, well in zip(missing, good, strict=True) if not well]


def read_results(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The results that are there, by name, in the order of `names`."""
    paths = {name: folder / f"{name}.json" for name in names}
    return {n: json.loads(p.read_text("utf-8")) for n, p in paths.items() if p.exists()}


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)

"""Implementations that take turns: medians, peak memory, and the share of the convolution peak.

Shared by the benchmarks that compare this library with others, each in an environment of its own.
"""

import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
OURS = "ours"


def environment(name: str, *requirements: str) -> str:
    """An interpreter that has these packages; its environment is made on first use."""
    folder = HERE / f".venv-{name}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *requirements], check=True)
    return str(python)


def peak_mb() -> float:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(run: Callable[[], object], repeat: int) -> dict[str, Any]:
    """For a worker: seconds of each repetition, and the peak of its process."""
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return dict(seconds=seconds, peak_mb=peak_mb())


@dataclass
class Measured:
    """All rounds of one implementation at one task."""

    seconds: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)
    imported_mb: list[float] = field(default_factory=list)
    """Peak with torch imported and no model yet, where the worker tells it."""
    parameters: int = 0
    flops: float = 0.0
    failure: str = ""

    @property
    def median_s(self) -> float:
        return median(self.seconds)

    @property
    def memory(self) -> str:
        return self.failure or f"{median(self.peak_mb):.0f} MB"

    @property
    def beyond_torch(self) -> str:
        if self.failure or not self.imported_mb:
            return ""
        return f"{median(self.peak_mb) - median(self.imported_mb):.0f} MB"


def run_worker(python: str, worker: str, *arguments: str) -> dict:
    """The line of JSON that a worker ends with, or its failure."""
    command = [python, str(HERE / worker), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        # Killed for memory, most likely: a result of its own.
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"failure": f"failed: {last[0][:80]}"}
    return json.loads(done.stdout.splitlines()[-1])


def take_turns(
    pythons: dict[str, str], worker: str, tasks: list[tuple[str, ...]], rounds: int
) -> dict[tuple[str, tuple[str, ...]], Measured]:
    """Every implementation at every task in turn, in fresh processes, `rounds` times."""
    cells: dict[tuple[str, tuple[str, ...]], Measured] = defaultdict(Measured)
    for task in tasks:
        for number in range(rounds):
            for name, python in pythons.items():
                cell = cells[name, task]
                if cell.failure:
                    continue
                result = run_worker(python, worker, name, *task)
                cell.failure = result.get("failure", "")
                if not cell.failure:
                    cell.seconds += result["seconds"]
                    cell.peak_mb.append(result["peak_mb"])
                    cell.imported_mb += [result["imported_mb"]] if "imported_mb" in result else []
                    cell.parameters, cell.flops = result["parameters"], result.get("flops", 0.0)
                times = ", ".join(f"{s:.2f}" for s in result.get("seconds", ()))
                said = cell.failure or f"{times} s, {result['peak_mb']:.0f} MB"
                print(f"{' '.join(task)} | {name} round {number}: {said}", file=sys.stderr)
    return cells

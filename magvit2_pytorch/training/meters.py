"""Measurements between two log lines, the progress bar, and curves."""

import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from magvit2_pytorch.runtime import peak_memory
from magvit2_pytorch.training.loop_config import LoopConfig
from magvit2_pytorch.training.processes import max_over_processes
from magvit2_pytorch.training.task import Measured, Task


class Meters:
    """Means since the last `read`, kept on the device until then."""

    def __init__(self, task: Task):
        self.task = task
        self._clear()

    def _clear(self):
        self.sums: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()
        self.latest: dict[str, float | int] = {}
        self.sizes: Counter[str] = Counter()
        self.steps, self.waited_s = 0, 0.0
        self.started = time.monotonic()
        self.task.begin_log()

    @contextmanager
    def waiting(self):
        """Measures the time spent waiting for data."""
        started = time.monotonic()
        yield
        self.waited_s += time.monotonic() - started

    def add(self, measured: Measured, sizes: Mapping[str, int] | None = None) -> None:
        """Adds what was measured on one batch with these sizes."""
        for name, value in measured.items():
            if isinstance(value, Tensor):
                value = value.detach()
                self.sums[name] = self.sums[name] + value if name in self.sums else value
                self.counts[name] += 1
            else:
                self.latest[name] = value
        self.sizes.update(sizes or {})

    def read(self) -> dict[str, float | int]:
        """Returns all values since the last call and resets them.

        Tensors are means over all processes. `data_wait`, the fraction of time spent waiting for
        data, and `peak_memory_mb` (see `peak_memory`) are maxima over processes.
        """
        accelerator = self.task.accelerator
        duration = max(time.monotonic() - self.started, 1e-9)
        values: dict[str, float | int] = {}
        if self.sums:
            # Averaged in one collective.
            means = [(total / self.counts[name]).float() for name, total in self.sums.items()]
            on_device = [mean.to(accelerator.device) for mean in means]
            reduced = accelerator.reduce(torch.stack(on_device), reduction="mean").tolist()
            values |= zip(self.sums, reduced, strict=True)
        values |= self.latest
        values |= self.task.end_log(values)
        values["steps_per_s"] = self.steps / duration
        for name, number in self.sizes.items():
            values[f"{name}_per_s"] = number * accelerator.num_processes / duration
        peak_mb = peak_memory(accelerator.device) / 1e6
        maxima = max_over_processes(accelerator, self.waited_s / duration, peak_mb)
        values["data_wait"], values["peak_memory_mb"] = maxima
        self._clear()
        return values


class Progress:
    """Progress bar over steps, or over seconds if `max_duration_s` is set."""

    def __init__(self, config: LoopConfig, shown: tuple[str, ...], step: int, main_process: bool):
        self.shown = (*shown, "steps_per_s")
        self.by_time = config.max_duration_s is not None
        total = round(config.max_duration_s) if self.by_time else config.num_train_steps
        visible = main_process and sys.stderr is not None and not sys.stderr.closed
        self.bar = tqdm(
            total=total,
            initial=0 if self.by_time else step,
            unit="s" if self.by_time else "step",
            disable=None if config.progress_bar and visible else True,
            dynamic_ncols=True,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def update(self, step: int, elapsed_s: float) -> None:
        done = min(elapsed_s, self.bar.total) if self.by_time else step
        self.bar.n = round(done)
        self.bar.refresh() if self.by_time else self.bar.update(0)

    def show(self, values: dict[str, float | int]) -> None:
        """Shows values of the last line of the log."""
        self.bar.set_postfix({n: f"{values[n]:.4g}" for n in self.shown if n in values})


def plot_curves(log: list[dict[str, float | int]], names: tuple[str, ...], path: Path) -> None:
    """Plots logged values and their validations to a PNG."""
    # Imported here because only the end of a run needs matplotlib; Agg needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(names) // 2)
    figure = Figure(figsize=(10, 3.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(rows, 2).flat, names, strict=False):
        # Short runs have one validation, and a line of one point is invisible without a marker.
        for key, label, mark in ((name, "training", ""), (f"valid/{name}", "held out", "o")):
            points = [(line["step"], line[key]) for line in log if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), marker=mark, label=label)
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=100)

"""Measurements of a run between two log lines, its progress bar, and its curves."""

import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from magvit2_pytorch.metrics.codebook import CodebookUsage
from magvit2_pytorch.runtime import peak_memory
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.objective import Loss, Reconstruction
from magvit2_pytorch.training.processes import max_over_processes
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.types import Video


class Meters:
    """Means since the last `read`, under the names of losses and options.

    Values stay on the device until they are read, so that measuring does not synchronize with it.
    """

    def __init__(self, tokenizer: VideoTokenizer, accelerator: Accelerator):
        self.accelerator = accelerator
        self.has_codes = tokenizer.codebook_size is not None
        self.codebook = (tokenizer.codebook_size, tokenizer.num_codebooks)
        self._clear()

    def _clear(self):
        self.sums: dict[str, Tensor | float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.usage = CodebookUsage(*self.codebook) if self.has_codes else None
        self.weights: dict[str, float | int] = {}
        self.steps, self.clips, self.frames, self.waited_s = 0, 0, 0, 0.0
        self.started = time.monotonic()

    @contextmanager
    def waiting(self):
        """Measures the time spent waiting for data."""
        started = time.monotonic()
        yield
        self.waited_s += time.monotonic() - started

    def add(self, video: Video, out: Reconstruction, loss: Loss) -> None:
        """Adds the loss terms and codes of one micro-batch."""
        error = (out.recon.detach().float() - video).square().mean()
        self._mean("loss", loss.total.detach())
        self._mean("mse", error)
        for name, term in loss.terms.items():
            self._mean(name, term.detach())
        self.weights |= loss.weights
        self.clips += video.shape[0]
        self.frames += video.shape[0] * video.shape[2]
        if self.usage is not None:
            self.usage.update(out.codes)

    def add_step(self, learning_rate: float, grad_norm: float) -> None:
        """Adds an optimizer step; norms that are not finite are left out."""
        self.steps += 1
        self.add_values({"learning_rate": learning_rate})
        if grad_norm < float("inf"):
            self._mean("grad_norm", grad_norm)

    def add_terms(self, terms: dict[str, Tensor], weights: dict[str, float] | None = None) -> None:
        """Adds further terms of a micro-batch, such as those of discriminators."""
        for name, term in terms.items():
            self._mean(name, term)
        self.weights |= weights or {}

    def add_values(self, values: dict[str, float]) -> None:
        """Sets values of which the last one is logged, not the mean."""
        for name, value in values.items():
            self.sums[name], self.counts[name] = value, 1

    def _mean(self, name: str, value: Tensor | float) -> None:
        self.sums[name] += value
        self.counts[name] += 1

    def read(self) -> dict[str, float | int]:
        """Returns all values since the last call and resets them.

        Terms and norms are means over all processes. `data_wait`, the fraction of time spent
        waiting for data, and `peak_memory_mb` (see `peak_memory`) are maxima over processes.
        """
        duration = max(time.monotonic() - self.started, 1e-9)
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        # Plain numbers are the same in every process; tensors are averaged in one collective.
        tensors = {name: mean for name, mean in means.items() if isinstance(mean, Tensor)}
        if tensors:
            stacked = torch.stack([mean.float() for mean in tensors.values()])
            reduced = self.accelerator.reduce(stacked, reduction="mean").tolist()
            means |= dict(zip(tensors, reduced, strict=True))
        values: dict[str, float | int] = means
        if "mse" in values:
            # From the mean error over clips, peak to peak 2: approximate, not for comparisons.
            values["psnr"] = float(10 * torch.tensor(4 / max(values["mse"], 1e-12)).log10())
        for name, weight in self.weights.items():
            values[f"weight/{name}"] = weight
        if self.usage is not None and self.clips:
            usage = self.usage.gathered().compute()
            values["codebook_usage"] = float(usage.usage)
            values["perplexity"] = float(usage.perplexity)
        num_processes = self.accelerator.num_processes
        values["steps_per_s"] = self.steps / duration
        values["clips_per_s"] = self.clips * num_processes / duration
        values["frames_per_s"] = self.frames * num_processes / duration
        peak_mb = peak_memory(self.accelerator.device) / 1e6
        maxima = max_over_processes(self.accelerator, self.waited_s / duration, peak_mb)
        values["data_wait"], values["peak_memory_mb"] = maxima
        self._clear()
        return values


class Progress:
    """Progress bar over steps, or over seconds if `max_duration_s` is set."""

    def __init__(self, config: TrainingConfig, step: int, main_process: bool):
        self.by_time = config.max_duration_s is not None
        total = round(config.max_duration_s) if self.by_time else config.num_train_steps
        self.bar = tqdm(
            total=total,
            initial=0 if self.by_time else step,
            unit="s" if self.by_time else "step",
            disable=None if config.progress_bar and main_process else True,
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
        self.bar.set_postfix(
            loss=f"{values['loss']:.4f}",
            psnr=f"{values['psnr']:.2f}",
            steps_per_s=f"{values['steps_per_s']:.2f}",
        )


CURVES = ("loss", "psnr", "learning_rate", "codebook_usage")


def plot_curves(log: list[dict[str, float | int]], path: Path) -> None:
    """Plots loss, PSNR, learning rate and codebook usage to a PNG."""
    # Imported here because only the end of a run needs matplotlib; Agg needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(2, 2).flat, CURVES, strict=True):
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

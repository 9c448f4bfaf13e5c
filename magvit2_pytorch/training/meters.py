"""Values measured during training between two lines of the log."""

import time
from collections import defaultdict
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

from magvit2_pytorch.memory import peak_memory
from magvit2_pytorch.metrics import CodebookUsage
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.objective import Loss, Reconstruction
from magvit2_pytorch.training.processes import max_over_processes
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

"""One optimizer step: learning rate, clipping, and steps that are skipped."""

from pathlib import Path

import torch
from accelerate import Accelerator
from ema_pytorch import EMA
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from magvit2_pytorch.training.optimizer import lr_scale
from magvit2_pytorch.training.training_config import TrainingConfig


class NonFiniteTraining(RuntimeError):
    """Too many consecutive steps had losses or gradients that are not finite."""


class SkippedSteps:
    """Counts steps skipped because a loss or gradient was not finite."""

    def __init__(self):
        self.total = 0
        self.in_a_row = 0
        """Skipped steps since the last step that was taken."""

    def count(self, finite: bool) -> None:
        """Counts one more step, taken or skipped."""
        self.total += not finite
        self.in_a_row = 0 if finite else self.in_a_row + 1

    def explanation(self, step: int, folder: Path, discriminator: str | None = None) -> str:
        """Error message: the skipped steps, the contents of `folder` and remedies."""
        owner = f" of the {discriminator} discriminator" if discriminator else ""
        prefix = "discriminator_" if discriminator else ""
        return (
            f"{self.in_a_row} steps in a row up to step {step} had a loss or gradient{owner} that "
            "is not finite. They changed no weights, averages or moments: the state from before "
            f"the first one is in {folder}. Resume from it or an older checkpoint with a lower "
            f"{prefix}learning_rate, precision='bf16' or 'fp32', or a smaller {prefix}max_grad_norm"
        )


def finite_or_nan(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Factor for the loss: 1 if the loss is finite, otherwise NaN.

    A loss can be infinite while its gradient is finite. With this factor the gradient becomes NaN,
    in all processes once gradients are averaged. All processes then skip the same step without
    communicating or waiting for the device.
    """
    return torch.where(loss.detach().isfinite(), 1.0, float("nan"))


class Optimization:
    """The tokenizer's optimizers, learning rate and averaged weights."""

    def __init__(
        self,
        module: nn.Module,
        optimizers: list[Optimizer],
        ema: EMA,
        config: TrainingConfig,
        accelerator: Accelerator,
    ):
        self.module, self.optimizers, self.ema = module, optimizers, ema
        self.config, self.accelerator = config, accelerator
        self.skips = SkippedSteps()

    def set_learning_rate(self, step: int, elapsed_s: float) -> float:
        """Sets the learning rate of a step and returns it.

        A group's `lr_factor` multiplies its rate, not the returned one.
        """
        config = self.config
        scale = lr_scale(
            step,
            config.num_train_steps,
            config.warmup_steps,
            config.schedule,
            config.final_lr_fraction,
            elapsed_s / config.max_duration_s if config.max_duration_s else 0.0,
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.get("lr_factor", 1.0) * config.learning_rate * scale
        return config.learning_rate * scale

    def apply_gradients(self) -> float:
        """Clips finite gradients and takes a step; returns the gradient norm.

        Gradients that are not finite skip the step, which then changes no weights, averages or
        moments, and is counted.
        """
        limit = self.config.max_grad_norm or float("inf")
        norm = float(self.accelerator.clip_grad_norm_(self.module.parameters(), limit))
        finite = norm < float("inf")  # false for NaN too
        if finite or self.accelerator.scaler is not None:
            # With a gradient scaler the optimizer itself skips, and the scaler needs the call.
            for optimizer in self.optimizers:
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if finite:
            self.ema.update()
        self.skips.count(finite)
        return norm

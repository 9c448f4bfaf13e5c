"""Numbers that go wrong: what marks a loss, what counts steps, what ends a run."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor


class NonFiniteTraining(RuntimeError):
    """Training gave up: too many steps in a row had numbers that are not finite."""


class SkippedSteps:
    """Counts steps that were left out because a loss or a gradient was not finite."""

    def __init__(self):
        self.total = 0
        self.in_a_row = 0
        """Those since the last step that was taken."""

    def count(self, finite: bool) -> None:
        """Counts one more step, taken or left out."""
        self.total += not finite
        self.in_a_row = 0 if finite else self.in_a_row + 1

    def explanation(self, step: int, folder: Path, discriminator: str | None = None) -> str:
        """What happened up to this step, what `folder` holds, and what to try."""
        whose = f" of the {discriminator} discriminator" if discriminator else ""
        prefix = "discriminator_" if discriminator else ""
        return (
            f"{self.in_a_row} steps in a row up to step {step} had a loss or gradient{whose} that "
            "is not finite. They changed no weights, averages or moments: those of before the "
            f"first one are in {folder}. Go on from there, or from an older one, with a lower "
            f"{prefix}learning_rate, precision='bf16' or 'fp32', or a smaller {prefix}max_grad_norm"
        )


def finite_or_nan(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """1 where the loss is finite, NaN where it is not: a factor for what gradients come from.

    A loss can be infinite while its gradient is not. With this factor the gradient shows it, and
    so it does in all processes once gradients are averaged: all leave out the same step, and
    none has to ask the others or wait for the device.
    """
    return torch.where(loss.detach().isfinite(), 1.0, float("nan"))

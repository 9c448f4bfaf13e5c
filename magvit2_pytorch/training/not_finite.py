"""Losses and gradients that are not finite: skipped steps and the error."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor


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

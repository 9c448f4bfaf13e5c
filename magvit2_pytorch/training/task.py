"""A task: all that a `Trainer` knows of its model."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.data.split import write_held_out
from magvit2_pytorch.training.loop_config import OptimizerOptions

Measured = Mapping[str, Tensor | float | int]
"""Named numbers of a step: of tensors the mean is logged, of plain numbers the last one."""


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """A module with optimizers of its own."""

    module: nn.Module
    options: OptimizerOptions
    not_for_muon: tuple[nn.Module, ...] = ()
    """Parts of the module whose matrices Muon must not take."""
    companions: Mapping[str, nn.Module] = field(default_factory=dict)
    """Modules without gradients that are saved with it, such as running means."""
    fixed_options: tuple[str, ...] = ()
    """Training options that a resumed run must share with its checkpoint."""
    option_prefix: str = ""
    """Prefix of its options' names, such as that of discriminator_learning_rate."""


class MicroStep(NamedTuple):
    """Surroundings of one forward and backward pass within an optimizer step."""

    step: int
    """Number of the optimizer step, from 0."""

    generator: torch.Generator
    """Random draws of a pass depend on seed, step, pass and process only."""

    num_passes: int
    """Forward passes of this optimizer step; gradients are their mean."""

    accelerator: Accelerator
    modules: Mapping[str, nn.Module]
    """Trained modules by name as the forward pass has to call them: in their wrappers for several
    processes, and compiled."""

    def backward(self, loss: Float[Tensor, ""], value: Float[Tensor, ""] | None = None) -> None:
        """Adds gradients of a loss, NaN if `value` is not finite."""
        finite = finite_or_nan(loss if value is None else value)
        self.accelerator.backward(loss * finite / self.num_passes)


def finite_or_nan(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Factor for the loss: 1 if the loss is finite, otherwise NaN.

    With it, the gradient of an infinite loss becomes NaN, in all processes once gradients are
    averaged: they skip the same step without communicating or waiting for the device.
    """
    return torch.where(loss.detach().isfinite(), 1.0, float("nan"))


class Best(NamedTuple):
    """The validation value by which the best checkpoint is chosen."""

    name: str
    goal: Literal["max", "min"]


class Validation(NamedTuple):
    """Result of a validation."""

    values: dict[str, float | int]
    pictures: dict[str, Path]
    """PNG and mp4 files by name; empty except in the main process."""


class TaskPlan(NamedTuple):
    """A task's part of the report of a dry run."""

    rows: list[tuple[str, str]]
    """Titles and texts of lines."""
    warnings: list[str]
    """Possible problems, one sentence each."""


class Task(ABC):
    """A model with its data, losses and measurements.

    The trainer owns the loop: devices, accumulation, random draws, optimizers, averages, logging,
    checkpoints, resuming, dry runs. It sets `accelerator` before it calls anything else. Every
    method but `begin` is called in all processes.
    """

    model: nn.Module
    """The model to use and save; its weights are averaged."""
    trainables: dict[str, Trainable]
    """Trained modules by name. The first contains the model."""
    frozen: Mapping[str, nn.Module] = {}
    """Other modules, by name: they are moved to the device."""
    not_averaged: frozenset[str] = frozenset()
    """Names of the model's parameters and buffers that averaging leaves alone."""
    best: Best = Best("valid/loss", "min")
    finishes_with_best: bool = False
    """True to end with the weights of the best validation instead of the last ones."""
    curves: tuple[str, ...] = ("loss", "learning_rate")
    """Logged values to plot at the end of a run."""
    shown: tuple[str, ...] = ("loss",)
    """Logged values to show in the progress bar."""
    held_out: Mapping[str, Any] = {}
    """A `HeldOut`: names of held-out data, which a continued run holds out again."""
    accelerator: Accelerator

    # Training

    def begin(self, folder: Path) -> None:
        """Writes the record of held-out data, in the main process only."""
        if self.held_out:
            write_held_out(folder, self.held_out)

    @abstractmethod
    def batches(self, start: int, kind: str | None = None) -> Iterator[Any]:
        """Infinite batches on the device, from number `start` on.

        A batch depends on its number only, so that a resumed run gets the same ones. With `kind`,
        all are of that kind; see `batch_kinds`.
        """

    @abstractmethod
    def step(self, batch: Any, micro: MicroStep) -> Measured:
        """Runs a forward and backward pass; returns measurements with a `loss`."""

    def after_step(self, taken: frozenset[str]) -> None:  # noqa: B027 (most tasks need none)
        """Ends an optimizer step, which the modules named in `taken` took."""

    def sizes(self, batch: Any) -> dict[str, int]:
        """Counts of a batch by name, logged per second."""
        return {}

    # Measuring

    def begin_log(self) -> None:  # noqa: B027 (a task may have nothing to forget)
        """Forgets measurements so far, for a new line of the log."""

    def end_log(self, means: Mapping[str, float]) -> dict[str, float | int]:
        """Further values for a line of the log, given its means."""
        return {}

    @abstractmethod
    def validate(self, model: nn.Module, path: Path, quick: bool = False) -> Validation:
        """Measures the averaged model on held-out data.

        Names of values begin with valid/. Names of pictures begin with `path`. `quick` takes one
        example in each process, to estimate the time.
        """

    @abstractmethod
    def finish(self, model: nn.Module, folder: Path, quick: bool = False) -> dict[str, float | int]:
        """Saves the averaged model below `folder`; returns values to log.

        If `finishes_with_best`, the main process gets the model of the best validation.
        """

    # State

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The model's configuration as JSON, which a resumed run must share."""

    def parse_description(self, saved: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint's description, with defaults for missing entries."""
        return saved

    # Dry run

    def batch_kinds(self) -> dict[str, float]:
        """Shares of batches by kind, if kinds differ in costs."""
        return {"": 1.0}

    def full_step(self, step: int) -> int:
        """The first step from `step` on that computes every loss."""
        return step

    def validation_rounds(self) -> int:
        """Times that a whole validation takes longer than a quick one."""
        return 1

    def plan(self, batch: Any, num_steps: int, examples_per_step: int) -> TaskPlan:
        """Estimated requirements of so many steps, given a batch."""
        return TaskPlan([], [])


class PretrainedTask(Task):
    """A task whose model has a config and is saved by `save_pretrained`."""

    saved_as: str
    """Name of the model's folder in the results folder."""

    def finish(self, model: nn.Module, folder: Path, quick: bool = False) -> dict[str, float | int]:
        if self.accelerator.is_main_process:
            model.save_pretrained(folder / self.saved_as)
        return {}

    def describe(self) -> dict[str, Any]:
        return self.model.config.to_dict()

    def parse_description(self, saved: dict[str, Any]) -> dict[str, Any]:
        return type(self.model.config).from_dict(saved).to_dict()


def size_text(size: Sequence[int]) -> str:
    """Text of a size, such as "5 x 64 x 64"."""
    return " x ".join(map(str, size))


def count_text(number: int | None) -> str:
    """Text of a number, which may be unknown."""
    return "an unknown number of" if number is None else f"{number:,}"

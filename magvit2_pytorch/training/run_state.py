"""State of a training run, collected for and restored from checkpoints."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ema_pytorch import EMA
from torch import Tensor

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.data.split import read_held_out
from magvit2_pytorch.training.checkpoints import SavedState
from magvit2_pytorch.training.loop_config import LoopConfig
from magvit2_pytorch.training.optimization import Optimization, add_prefix, select_prefix
from magvit2_pytorch.training.task import Task
from magvit2_pytorch.weights import mismatches

FOLDER_OPTIONS = ("results_folder", "checkpoints_folder")
"""Options that decide only where files are written."""


class TrainingState:
    """Weights, averages, optimizers, gradient scaler and counts of a run."""

    def __init__(
        self, task: Task, optimizations: Mapping[str, Optimization], ema: EMA, config: LoopConfig
    ):
        self.task, self.optimizations, self.ema, self.config = task, optimizations, ema, config
        self.main = next(iter(optimizations))
        self.scaler = task.accelerator.scaler

    def gather(self, step: int, elapsed_s: float) -> SavedState:
        """Collects the state of the run, its step and its training time."""
        tensors = add_prefix(self.ema.state_dict(), "ema")
        for name, optimization in self.optimizations.items():
            tensors |= add_prefix(optimization.state_dict(), name)
        values = {
            "step": step,
            "elapsed_s": elapsed_s,
            "skipped_steps": {n: o.skips.total for n, o in self.optimizations.items()},
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            self.main: self.task.describe(),
            "training": self.config.to_dict(),
            "held_out": self.task.held_out,
        }
        return SavedState(tensors, values)

    def restore(self, state: SavedState) -> tuple[int, float]:
        """Restores a state; returns its step and training time in seconds.

        Trained modules other than the first, such as discriminators, may be added or removed.
        Raises `ValueError`, before anything is changed, if the model, the optimizer or another
        module of the same name differs.
        """
        tensors, values = state
        self._check_configuration(state)
        in_both = self._in_checkpoint(state)
        faults = []
        for name in in_both:
            faults += self.optimizations[name].misfits(select_prefix(tensors, name))
        wanted = {name: tuple(value.shape) for name, value in self.ema.state_dict().items()}
        if fault := mismatches(select_prefix(tensors, "ema"), wanted):
            faults.append(f"ema {fault}")
        if faults:
            raise ValueError(f"the checkpoint does not fit this training: {'; '.join(faults)}")
        self.ema.load_state_dict(select_prefix(tensors, "ema"))
        for name in in_both:
            self.optimizations[name].load_state_dict(select_prefix(tensors, name))
            self.optimizations[name].skips.total = values["skipped_steps"][name]
        if self.scaler is not None and values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
        # What micro-batches before the checkpoint left for the end of their step is void.
        self.task.after_step(frozenset())
        return values["step"], values["elapsed_s"]

    def changes(self, state: SavedState) -> list[str]:
        """Training options that differ from the checkpoint's, like "batch_size 4 -> 8"."""
        ours, theirs = self.config.to_dict(), state.values["training"]
        return [
            f"{name} {theirs[name]} -> {ours[name]}"
            for name in ours
            if name in theirs and theirs[name] != ours[name] and name not in FOLDER_OPTIONS
        ]

    def no_longer_held_out(self, state: SavedState) -> list[str]:
        """Names that the checkpoint's run held out and this run does not."""
        ours = self.task.held_out, read_held_out(as_path(self.config.results_folder))
        known = {name for record in ours for names in record.values() for name in names}
        theirs = state.values.get("held_out", {})
        return sorted({name for names in theirs.values() for name in names} - known)

    def _in_checkpoint(self, state: SavedState) -> list[str]:
        """Trained modules that the checkpoint also has, and the model."""
        saved = state.values["skipped_steps"]
        return [name for name in self.optimizations if name in saved or name == self.main]

    def _check_configuration(self, state: SavedState) -> None:
        values = state.values
        theirs = self.task.parse_description(values[self.main])
        differences = list(_differences(f"the {self.main}'s ", theirs, self.task.describe()))
        config = self.config.to_dict()
        fixed = {
            option
            for name in self._in_checkpoint(state)
            for option in self.optimizations[name].trainable.fixed_options
        }
        # A discriminator without options has None or {}.
        theirs, ours = (
            {n: {} if x[n] is None else x[n] for n in config if n in fixed}
            for x in (config | values["training"], config)
        )
        differences += _differences("", theirs, ours)
        if differences:
            raise ValueError(
                f"the checkpoint does not fit this training: {'; '.join(differences)}. Use the "
                "options of the checkpoint, or start a new run in another folder"
            )


def averaged_weights(state: SavedState) -> dict[str, Tensor]:
    """Averaged weights of the model in a checkpoint, by name."""
    return select_prefix(state.tensors, "ema.ema_model")


def _differences(owner: str, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    for name, value in ours.items():
        if theirs.get(name) != value:
            saved, current = (json.dumps(x) for x in (theirs.get(name), value))
            yield f"{owner}{name} is {saved} in the checkpoint and {current} here"

"""State of a training run, collected for and restored from checkpoints."""

import json
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
from magvit2_pytorch.training.gan import DiscriminatorTrainer
from magvit2_pytorch.training.state import (
    SavedState,
    add_prefix,
    flatten_optimizer,
    restore_optimizer,
    select_prefix,
)
from magvit2_pytorch.training.update import Optimization
from magvit2_pytorch.weights import mismatches

FOLDER_OPTIONS = ("results_folder", "checkpoints_folder")
"""Options that decide only where files are written."""


class TrainingState:
    """Weights, averages, optimizers, discriminators, gradient scaler and counts of a run.

    Learning rate, random draws and data order are functions of the step and need no state.
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        optimization: Optimization,
        discriminators: list[DiscriminatorTrainer],
    ):
        self.tokenizer, self.discriminators = tokenizer, discriminators
        self.skips, self.config = optimization.skips, optimization.config
        self.ema, self.optimizers = optimization.ema, optimization.optimizers
        self.scaler = optimization.accelerator.scaler

    def gather(self, step: int, elapsed_s: float) -> SavedState:
        """Collects the state of the run, its step and its training time."""
        tensors = add_prefix(self.tokenizer.state_dict(), "tokenizer")
        tensors |= add_prefix(self.ema.state_dict(), "ema")
        for number, optimizer in enumerate(self.optimizers):
            tensors |= flatten_optimizer(optimizer, f"optimizer_{number}")
        for discriminator in self.discriminators:
            tensors |= add_prefix(discriminator.state_dict(), f"adversary_{discriminator.name}")
        values = {
            "step": step,
            "elapsed_s": elapsed_s,
            "skipped_steps": self.skips.total,
            "discriminator_skipped_steps": {d.name: d.skips.total for d in self.discriminators},
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "tokenizer": self.tokenizer.config.to_dict(),
            "training": self.config.to_dict(),
        }
        return SavedState(tensors, values)

    def restore(self, state: SavedState) -> tuple[int, float]:
        """Restores a state; returns its step and training time in seconds.

        Discriminators may be added or removed. Raises `ValueError`, before anything is changed, if
        the tokenizer, the optimizer or a discriminator of the same name differs.
        """
        self._check_configuration(state)
        self._check_tensors(state.tensors)
        tensors, values = state
        self.tokenizer.load_state_dict(select_prefix(tensors, "tokenizer"))
        self.ema.load_state_dict(select_prefix(tensors, "ema"))
        for number, optimizer in enumerate(self.optimizers):
            restore_optimizer(optimizer, tensors, f"optimizer_{number}")
        for discriminator in self._in_checkpoint(tensors):
            name = discriminator.name
            discriminator.load_state_dict(select_prefix(tensors, f"adversary_{name}"))
            discriminator.skips.total = values["discriminator_skipped_steps"][name]
        if self.scaler is not None and values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
        self.skips.total = values["skipped_steps"]
        return values["step"], values["elapsed_s"]

    def changes(self, state: SavedState) -> list[str]:
        """Training options that differ from the checkpoint's, like "batch_size 4 -> 8"."""
        ours, theirs = self.config.to_dict(), state.values["training"]
        return [
            f"{name} {theirs[name]} -> {ours[name]}"
            for name in ours
            if name in theirs and theirs[name] != ours[name] and name not in FOLDER_OPTIONS
        ]

    def _in_checkpoint(self, tensors: dict[str, Tensor]) -> list[DiscriminatorTrainer]:
        """Discriminators of this run that the checkpoint also has."""
        return [d for d in self.discriminators if select_prefix(tensors, f"adversary_{d.name}")]

    def _check_configuration(self, state: SavedState) -> None:
        tensors, values = state
        # Parsed as a configuration, so that options newer than the checkpoint get their defaults.
        theirs = TokenizerConfig.from_dict(values["tokenizer"]).to_dict()
        differences = list(
            _differences("the tokenizer's ", theirs, self.tokenizer.config.to_dict())
        )
        fixed = ["optimizer", *(f"{d.name}_discriminator" for d in self._in_checkpoint(tensors))]
        theirs = {name: values["training"].get(name) or {} for name in fixed}
        ours = {name: self.config.to_dict()[name] or {} for name in fixed}
        differences += _differences("", theirs, ours)
        if differences:
            raise ValueError(
                f"the checkpoint does not fit this training: {'; '.join(differences)}. Use the "
                "options of the checkpoint, or start a new run in another folder"
            )

    def _check_tensors(self, tensors: dict[str, Tensor]) -> None:
        modules: dict[str, nn.Module] = {"tokenizer": self.tokenizer, "ema": self.ema}
        optimizers = {f"optimizer_{n}": optimizer for n, optimizer in enumerate(self.optimizers)}
        for discriminator in self._in_checkpoint(tensors):
            name = f"adversary_{discriminator.name}"
            modules[f"{name}.discriminator"] = discriminator.network
            modules[f"{name}.lecam"] = discriminator.lecam
            optimizers[f"{name}.optimizer"] = discriminator.optimizer
        shapes = {
            n: {name: tuple(value.shape) for name, value in m.state_dict().items()}
            for n, m in modules.items()
        }
        shapes |= {
            n: _optimizer_shapes(o, select_prefix(tensors, n)) for n, o in optimizers.items()
        }
        faults = [
            (n, mismatches(select_prefix(tensors, n), wanted)) for n, wanted in shapes.items()
        ]
        faults = [f"{name} {fault}" for name, fault in faults if fault]
        if faults:
            raise ValueError(f"the checkpoint does not fit this training: {'; '.join(faults)}")


def _differences(owner: str, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    for name, value in ours.items():
        if theirs[name] != value:
            saved, current = (json.dumps(x) for x in (theirs[name], value))
            yield f"{owner}{name} is {saved} in the checkpoint and {current} here"


def _optimizer_shapes(optimizer: Optimizer, state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Expected shapes: moments have those of their parameters, counts are scalars."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shapes = {}
    for name, value in state.items():
        index = int(name.split(".", 1)[0])
        if index < len(parameters):
            shapes[name] = tuple(parameters[index].shape) if value.ndim else ()
    return shapes

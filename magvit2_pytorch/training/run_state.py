"""All state of a training run in one place: gathered for a checkpoint, put back from one."""

import json
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from magvit2_pytorch.quantizers.continuous import STATISTICS
from magvit2_pytorch.state_file import mismatches
from magvit2_pytorch.tokenizer.config import TokenizerConfig
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.adversary import Adversary
from magvit2_pytorch.training.state import (
    State,
    flatten_optimizer,
    restore_optimizer,
    under,
    with_prefix,
)
from magvit2_pytorch.training.update import Update

PLACES = ("results_folder", "checkpoints_folder")
"""Options that say nothing about a training but where it is kept."""


class RunState:
    """Weights, averages, optimizers, discriminators, gradient scaler and counts of a run.

    Learning rate, random draws and the order of data are functions of the step.
    """

    def __init__(self, tokenizer: VideoTokenizer, update: Update, adversaries: list[Adversary]):
        self.tokenizer, self.adversaries = tokenizer, adversaries
        self.skips, self.config = update.skips, update.config
        self.ema, self.optimizers = update.ema, update.optimizers
        self.scaler = update.accelerator.scaler

    def gather(self, step: int, elapsed_s: float) -> State:
        """Everything there is to save, with how far the run has come."""
        tensors = with_prefix(self.tokenizer.state_dict(), "tokenizer")
        tensors |= with_prefix(self.ema.state_dict(), "ema")
        for number, optimizer in enumerate(self.optimizers):
            tensors |= flatten_optimizer(optimizer, f"optimizer_{number}")
        for adversary in self.adversaries:
            tensors |= with_prefix(adversary.state_dict(), f"adversary_{adversary.name}")
        return tensors, {
            "step": step,
            "elapsed_s": elapsed_s,
            "skipped_steps": self.skips.total,
            "discriminator_skipped_steps": {a.name: a.skips.total for a in self.adversaries},
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "tokenizer": self.tokenizer.config.to_dict(),
            "training": self.config.to_dict(),
        }

    def restore(self, state: State) -> tuple[int, float]:
        """Goes back to what `gather` gave; returns step and seconds.

        Raises `ValueError`, before anything is changed, where it does not fit: another tokenizer
        or optimizer, or another discriminator of the same name. Discriminators may join or leave.
        """
        self._check_configuration(state)
        self._check_tensors(state)
        tensors, values = state
        self.tokenizer.load_state_dict(under(tensors, "tokenizer"))
        self.ema.load_state_dict(under(tensors, "ema"))
        for number, optimizer in enumerate(self.optimizers):
            restore_optimizer(optimizer, tensors, f"optimizer_{number}")
        for adversary in self._joint(tensors):
            adversary.load_state_dict(under(tensors, f"adversary_{adversary.name}"))
            skipped = values.get("discriminator_skipped_steps", {})
            adversary.skips.total = skipped.get(adversary.name, 0)
        if self.scaler is not None and values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
        self.skips.total = values["skipped_steps"]
        return values["step"], values["elapsed_s"]

    def changes(self, state: State) -> list[str]:
        """Options of training that were others there: "batch_size 4 -> 8"."""
        ours, theirs = self.config.to_dict(), state[1]["training"]
        return [
            f"{name} {theirs[name]} -> {ours[name]}"
            for name in ours
            if name in theirs and theirs[name] != ours[name] and name not in PLACES
        ]

    def _joint(self, tensors: dict[str, Tensor]) -> list[Adversary]:
        """The discriminators that were there already."""
        return [a for a in self.adversaries if under(tensors, f"adversary_{a.name}")]

    def _check_configuration(self, state: State) -> None:
        tensors, values = state
        # Read as a configuration, so that options which are newer than the checkpoint have
        # their defaults.
        theirs = TokenizerConfig.from_dict(values["tokenizer"]).to_dict()
        differences = list(
            _differences("the tokenizer's ", theirs, self.tokenizer.config.to_dict())
        )
        fixed = ["optimizer", *(f"{a.name}_discriminator" for a in self._joint(tensors))]
        theirs = {name: values["training"].get(name) or {} for name in fixed}
        ours = {name: self.config.to_dict()[name] or {} for name in fixed}
        differences += _differences("", theirs, ours)
        if differences:
            raise ValueError(
                f"the checkpoint does not fit this training: {'; '.join(differences)}. Give the "
                "options that it was made with, or start a new run in another folder"
            )

    def _check_tensors(self, state: State) -> None:
        tensors, _ = state
        modules: dict[str, nn.Module] = {"tokenizer": self.tokenizer, "ema": self.ema}
        optimizers = {f"optimizer_{n}": optimizer for n, optimizer in enumerate(self.optimizers)}
        for adversary in self._joint(tensors):
            name = f"adversary_{adversary.name}"
            modules[f"{name}.discriminator"] = adversary.discriminator
            modules[f"{name}.lecam"] = adversary.lecam
            optimizers[f"{name}.optimizer"] = adversary.optimizer
        faults = [(n, _module_misfits(m, under(tensors, n))) for n, m in modules.items()]
        faults += [(n, _optimizer_misfits(o, under(tensors, n))) for n, o in optimizers.items()]
        faults = [f"{name} {fault}" for name, fault in faults if fault]
        if faults:
            raise ValueError(f"the checkpoint does not fit this training: {'; '.join(faults)}")


def _differences(owner: str, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    for name, value in ours.items():
        if theirs[name] != value:
            was, now = (json.dumps(x) for x in (theirs[name], value))
            yield f"{owner}{name} is {was} there and {now} here"


def _module_misfits(module: nn.Module, state: dict[str, Tensor]) -> str:
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    # Checkpoints of before latents were measured lack these, and load.
    newer = {name for name in wanted if name.rpartition(".")[2] in STATISTICS}
    return mismatches(state, {n: s for n, s in wanted.items() if n in state or n not in newer})


def _optimizer_misfits(optimizer: Optimizer, state: dict[str, Tensor]) -> str:
    """Moments have their parameter's shape; counts have none."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    wanted = {}
    for name, value in state.items():
        index = int(name.split(".", 1)[0])
        if index < len(parameters):
            wanted[name] = tuple(parameters[index].shape) if value.ndim else ()
    return mismatches(state, wanted)

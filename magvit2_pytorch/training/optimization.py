"""Optimizer steps of a module: learning rate, clipping, skipped steps."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from magvit2_pytorch.training.optimizer import build_optimizers, lr_scale
from magvit2_pytorch.training.processes import prepare
from magvit2_pytorch.training.task import Trainable
from magvit2_pytorch.weights import mismatches


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


class Optimization:
    """A trained module with its optimizers, learning rate and skipped steps."""

    def __init__(self, name: str, trainable: Trainable, accelerator: Accelerator):
        self.name, self.trainable, self.accelerator = name, trainable, accelerator
        self.options = trainable.options
        self.check_trainable()
        optimizers = build_optimizers(trainable.module, self.options, trainable.not_for_muon)
        self.module, *self.optimizers = prepare(accelerator, trainable.module, *optimizers)
        self.skips = SkippedSteps()

    def check_trainable(self) -> None:
        """Raises `ValueError` if nothing can be trained: all weights are frozen."""
        if not any(p.requires_grad for p in self.trainable.module.parameters()):
            raise ValueError(
                f"all weights of the {self.name} are frozen: call requires_grad_(True) on those to "
                "train"
            )

    def is_active(self, step: int) -> bool:
        """False before the first step at which this module is trained."""
        return step >= self.options.start_step

    # Optimizer step

    def set_learning_rate(self, step: int, elapsed_s: float) -> float:
        """Sets the learning rate of a step and returns it, without `lr_factor`."""
        options = self.options
        scale = lr_scale(
            step - options.start_step,
            options.num_train_steps,
            options.warmup_steps,
            options.schedule,
            options.final_lr_fraction,
            elapsed_s / options.max_duration_s if options.max_duration_s else 0.0,
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.get("lr_factor", 1.0) * options.learning_rate * scale
        return options.learning_rate * scale

    def apply_gradients(self) -> float | None:
        """Clips gradients and takes a step; None if they are not finite."""
        limit = self.options.max_grad_norm or float("inf")
        norm = float(self.accelerator.clip_grad_norm_(self.module.parameters(), limit))
        finite = norm < float("inf")  # false for NaN too
        if finite or self.accelerator.scaler is not None:
            # With a gradient scaler the optimizer itself skips, and the scaler needs the call.
            for optimizer in self.optimizers:
                optimizer.step()
        self.clear_gradients()
        self.skips.count(finite)
        return norm if finite else None

    def clear_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def explain_skips(self, step: int, folder: Path, main: bool) -> str:
        """Error message: the skipped steps, the contents of `folder` and remedies."""
        owner = "" if main else f" of the {self.name.replace('_', ' ')}"
        prefix = self.trainable.option_prefix
        return (
            f"{self.skips.in_a_row} steps in a row up to step {step} had a loss or gradient{owner} "
            "that is not finite. They changed no weights, averages or moments: the state from "
            f"before the first one is in {folder}. Resume from it or an older checkpoint with a "
            f"lower {prefix}learning_rate, precision='bf16' or 'fp32', or a smaller "
            f"{prefix}max_grad_norm"
        )

    # State

    @property
    def _modules(self) -> dict[str, nn.Module]:
        network = self.accelerator.unwrap_model(self.module)
        return {"weights": network, **self.trainable.companions}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, buffers of companions and the optimizers' moments, by name."""
        tensors = {}
        for name, module in self._modules.items():
            tensors |= add_prefix(module.state_dict(), name)
        for number, optimizer in enumerate(self.optimizers):
            tensors |= flatten_optimizer(optimizer, f"optimizer_{number}")
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        for name, module in self._modules.items():
            module.load_state_dict(select_prefix(tensors, name))
        for number, optimizer in enumerate(self.optimizers):
            restore_optimizer(optimizer, tensors, f"optimizer_{number}")

    def misfits(self, tensors: dict[str, Tensor]) -> list[str]:
        """Names and shapes of a saved state that do not fit."""
        shapes = {
            name: {key: tuple(value.shape) for key, value in module.state_dict().items()}
            for name, module in self._modules.items()
        }
        for number, optimizer in enumerate(self.optimizers):
            name = f"optimizer_{number}"
            shapes[name] = _optimizer_shapes(optimizer, select_prefix(tensors, name))
        faults = {
            name: mismatches(select_prefix(tensors, name), wanted)
            for name, wanted in shapes.items()
        }
        return [f"{self.name}.{name} {fault}" for name, fault in faults.items() if fault]


def _optimizer_shapes(optimizer: Optimizer, state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Expected shapes: moments have those of their parameters, counts are scalars."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shapes = {}
    for name, value in state.items():
        index = int(name.split(".", 1)[0])
        if index < len(parameters):
            shapes[name] = tuple(parameters[index].shape) if value.ndim else ()
    return shapes


def flatten_optimizer(optimizer: Optimizer, prefix: str) -> dict[str, Tensor]:
    """The optimizer's moments and counts as named tensors, without parameter groups."""
    return {
        f"{prefix}.{index}.{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """Loads tensors of `flatten_optimizer` into an identically built optimizer."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in select_prefix(tensors, prefix).items():
        index, name = key.split(".", 1)
        # Views of a mapped file would keep all of it in memory and on the disk.
        state.setdefault(int(index), {})[name] = value.clone()
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def select_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names start with `prefix.`, under the rest of their names."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def add_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors under `prefix.` and their names; the inverse of `select_prefix`."""
    return {f"{prefix}.{key}": value for key, value in tensors.items()}

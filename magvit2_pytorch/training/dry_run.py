"""Dry run of a training: two real steps, then the state restored."""

import copy
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from magvit2_pytorch.config import keyword_signature
from magvit2_pytorch.runtime import peak_memory, total_memory
from magvit2_pytorch.training.checkpoints import Checkpoints, load_state
from magvit2_pytorch.training.loop_config import LoopConfig
from magvit2_pytorch.training.optimization import Optimization
from magvit2_pytorch.training.plan import Plan
from magvit2_pytorch.training.processes import lost_process_errors, max_over_processes, on_main
from magvit2_pytorch.training.tracking import Tracking, read_log
from magvit2_pytorch.training.trainer import Trainer


class Costs(NamedTuple):
    """Seconds of a training's parts, and bytes of its files."""

    step_s: float
    validation_s: float
    save_s: float
    checkpoint: int = 0
    pictures: int = 0
    """Of one validation."""
    results: int = 0
    """Of all results but pictures."""


def dry_run(trainer: Trainer) -> Plan:
    """Runs every part of a training once, then restores the previous state.

    Trains for two steps on each kind of batch, from a step that computes every loss, then validates
    one example, saves a checkpoint and the final outputs, in a temporary folder beside the
    checkpoints. Only decoded frames in a cache remain. Raises what training would raise, and
    `MemoryError` if the GPU memory is too small.
    """
    try:
        with (
            lost_process_errors(trainer.accelerator),
            _temporary_folder(trainer) as folder,
            _restoring_state(trainer, folder),
        ):
            return _measure(trainer, folder)
    except torch.cuda.OutOfMemoryError as error:
        raise MemoryError(
            f"two steps do not fit into the memory of {trainer.accelerator.device}: lower "
            f"batch_size from {trainer.config.batch_size} and raise grad_accum_every ({error})"
        ) from error


class TaskTrainer(Trainer):
    """Base of trainers with keyword options and a dry run."""

    config_class: ClassVar[type[LoopConfig]]
    """Class of the options."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        cls.__signature__ = keyword_signature(cls.__init__, cls.config_class)

    def dry_run(self) -> Plan:
        """Runs each part of `train` once, see the function `dry_run`."""
        return dry_run(self)


# Restoring the state


@contextmanager
def _temporary_folder(trainer: Trainer) -> Iterator[Path]:
    """A folder on the checkpoints' disk, the same in all processes."""
    parent = _existing_parent(trainer.checkpoints_folder)
    accelerator = trainer.accelerator
    folder = on_main(accelerator, lambda: Path(tempfile.mkdtemp(prefix=".dry-run-", dir=parent)))
    try:
        yield folder
        accelerator.wait_for_everyone()  # others may still read what the main process removes
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(folder)


@contextmanager
def _restoring_state(trainer: Trainer, folder: Path) -> Iterator[None]:
    """Restores state and random generators from a checkpoint at the end."""
    optimizations = trainer.optimizations.values()
    in_a_row = [optimization.skips.in_a_row for optimization in optimizations]
    random_states = random.getstate(), np.random.get_state()
    device = trainer.accelerator.device
    trainer.save(folder / "before")
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(random_states[0])
        np.random.set_state(random_states[1])
        trainer.state.restore(load_state(folder / "before"))
        for optimization, number in zip(optimizations, in_a_row, strict=True):
            optimization.clear_gradients()
            optimization.skips.in_a_row = number


# Measuring


def _trial(trainer: Trainer, folder: Path) -> Trainer:
    """A trainer of the same modules that writes to `folder` alone."""
    trial = copy.copy(trainer)
    trial.is_trial = True
    trial.checkpoints_folder = folder / "checkpoints"
    trial.checkpoints = Checkpoints(trial.checkpoints_folder, best=trainer.task.best)
    trial.results_folder = folder / "results"
    trial.tracking = Tracking(trainer.accelerator, trial.results_folder, {}, use_trackers=False)
    trial.durations = {}
    return trial


def _measure(trainer: Trainer, folder: Path) -> Plan:
    accelerator, task = trainer.accelerator, trainer.task
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    skips = trainer.optimization.skips
    skipped_before = skips.total
    batches, step_s, waited_s = [], 0.0, 0.0
    for kind, share in task.batch_kinds().items():
        trial = _trial(trainer, folder / kind)
        batch, line = _two_steps(trial, kind)
        batches.append(batch)
        step_s += share / line["steps_per_s"]
        waited_s += share * line["data_wait"] / line["steps_per_s"]

    def sizes() -> tuple[int, int, int]:
        """Bytes of a checkpoint, a validation's pictures, and all other results."""
        pictures = sum(path.stat().st_size for path in trial.results_folder.glob("step-*"))
        [checkpoint] = trial.checkpoints.steps().values()
        return _bytes_below(checkpoint), pictures, _bytes_below(trial.results_folder) - pictures

    validation_s = trial.durations["validation"] * task.validation_rounds()
    save_s = trial.durations["checkpoint"]
    costs = Costs(step_s, validation_s, save_s, *on_main(accelerator, sizes))
    peak = max_over_processes(accelerator, float(peak_memory(accelerator.device)))
    return _plan(
        trainer,
        costs,
        batches[0],
        data_wait=waited_s / step_s,
        peak_memory=round(*peak),
        num_skipped_steps=skips.total - skipped_before,
    )


def _two_steps(trial: Trainer, kind: str) -> tuple[Any, dict[str, float | int]]:
    """A batch, and the logged values of the second of two steps."""
    task, start = trial.task, trial.step
    batches = task.batches(start * trial.config.grad_accum_every, kind)
    first = next(batches)
    trial.open_batches = lambda: chain([first], batches)
    trial.step, never = task.full_step(start), sys.maxsize
    trial.config = replace(
        trial.config,
        num_train_steps=trial.step + 2,
        max_duration_s=None,
        log_every_step=1,
        validate_every_step=never,
        checkpoint_every_step=never,
        max_skipped_steps=never,
        progress_bar=False,
    )
    trial.train()
    log = on_main(trial.accelerator, lambda: read_log(trial.tracking.path))
    return first, [line for line in log if "steps_per_s" in line][-1]


# Planning


def _plan(trainer: Trainer, costs: Costs, batch: Any, **measured: Any) -> Plan:
    config, task = trainer.config, trainer.task
    num_processes = trainer.accelerator.num_processes
    examples = config.batch_size * config.grad_accum_every * num_processes
    num_steps, duration_s = _duration(trainer, costs)
    num_validations = -(-num_steps // config.validate_every_step)
    num_checkpoints = 1 + num_steps // config.checkpoint_every_step
    if config.keep_checkpoints is not None:
        # The newest ones, the best one, and another one while it is written.
        num_checkpoints = min(num_checkpoints, config.keep_checkpoints) + 2
    modules = {name: trainable.module for name, trainable in task.trainables.items()}
    modules |= task.frozen
    return Plan(
        config=config,
        device=str(trainer.accelerator.device),
        num_processes=num_processes,
        examples_per_step=examples,
        task=task.plan(batch, num_steps, examples),
        parameters={
            name.replace("_", " "): sum(p.numel() for p in module.parameters())
            for name, module in modules.items()
        },
        held_memory=_held_memory(trainer),
        total_memory=total_memory(trainer.accelerator.device),
        steps_per_s=1 / costs.step_s,
        num_steps=num_steps,
        duration_s=duration_s,
        num_validations=num_validations,
        checkpoint_bytes=costs.checkpoint,
        disk_bytes=num_checkpoints * costs.checkpoint
        + num_validations * costs.pictures
        + costs.results,
        free_bytes=shutil.disk_usage(_existing_parent(trainer.checkpoints_folder)).free,
        **measured,
    )


def _duration(trainer: Trainer, costs: Costs) -> tuple[int, float]:
    """Remaining steps, and seconds for them with validations and checkpoints."""
    config = trainer.config
    num_steps = config.num_train_steps - trainer.step
    per_step_s = costs.step_s + costs.save_s / config.checkpoint_every_step
    # While a run improves, every validation also saves a checkpoint.
    per_step_s += (costs.validation_s + costs.save_s) / config.validate_every_step
    if config.max_duration_s is not None:
        remaining_s = config.max_duration_s - trainer.elapsed_s
        num_steps = max(0, min(num_steps, int(remaining_s / per_step_s)))
    final_s = costs.validation_s + costs.save_s
    return num_steps, num_steps * per_step_s + final_s


def _held_memory(trainer: Trainer) -> dict[str, int]:
    def weights(module: nn.Module) -> int:
        return sum(parameter.nbytes for parameter in module.parameters())

    def gradients(module: nn.Module) -> int:
        return sum(p.nbytes for p in module.parameters() if p.requires_grad)

    def moments(optimization: Optimization) -> int:
        states = (optimizer.state_dict()["state"] for optimizer in optimization.optimizers)
        return sum(x.nbytes for x in tree_leaves(list(states)) if isinstance(x, Tensor))

    main, *others = trainer.optimizations.values()
    held = {
        "weights": weights(main.module),
        "gradients": gradients(main.module),
        "moments": moments(main),
        "average": weights(trainer.ema.ema_model),
    }
    for other in others:
        module = other.module
        held[other.name.replace("_", " ")] = weights(module) + gradients(module) + moments(other)
    return held | {name: weights(module) for name, module in trainer.task.frozen.items()}


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _existing_parent(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())

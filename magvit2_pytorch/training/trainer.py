"""The training loop: it trains any `Task`."""

import copy
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.data.workers import naming_dead_workers
from magvit2_pytorch.runtime import keyed_seed
from magvit2_pytorch.training.arithmetic_check import ArithmeticCheck
from magvit2_pytorch.training.checkpoints import (
    BEST,
    Checkpoints,
    SavedState,
    load_state,
    save_state,
)
from magvit2_pytorch.training.loop_config import LoopConfig
from magvit2_pytorch.training.meters import Meters, Progress, plot_curves
from magvit2_pytorch.training.optimization import NonFiniteTraining, Optimization
from magvit2_pytorch.training.optimizer import build_ema
from magvit2_pytorch.training.processes import (
    Interruptible,
    any_process,
    build_accelerator,
    check_all_have_gradients,
    lost_process_errors,
    on_main,
)
from magvit2_pytorch.training.run_state import TrainingState, averaged_weights
from magvit2_pytorch.training.task import MicroStep, Task
from magvit2_pytorch.training.tracking import DEFAULT_PROJECT, Tracking, read_log


class Trainer:
    """Trains a `Task` on any number of processes, and resumes.

    The task knows the model, its data and its losses; the trainer does the same for every task.
    Devices and processes are handled by accelerate, whose `Accelerator` takes `accelerate_kwargs`.
    """

    is_trial = False
    """True in the copy of a trainer that a dry run uses."""

    def __init__(
        self, task: Task, config: LoopConfig, accelerate_kwargs: dict[str, Any] | None = None
    ):
        self.task, self.config = task, config
        self.accelerator = task.accelerator = build_accelerator(config, accelerate_kwargs or {})
        device = self.accelerator.device
        for module in (*(t.module for t in task.trainables.values()), *task.frozen.values()):
            module.to(device)
        for trainable in task.trainables.values():
            for companion in trainable.companions.values():
                companion.to(device)
        self.ema = build_ema(task.model, config, task.not_averaged).to(device)
        self.optimizations = {
            name: Optimization(name, trainable, self.accelerator)
            for name, trainable in task.trainables.items()
        }
        self.modules: dict[str, nn.Module] = {n: o.module for n, o in self.optimizations.items()}
        if config.compile:
            main = next(iter(self.modules))
            self.modules[main] = torch.compile(self.modules[main])
        checks = config.check_arithmetic and not config.compile
        self.arithmetic_check = ArithmeticCheck(
            (trainable.module for trainable in task.trainables.values()),
            config.precision if checks else "fp32",
        )
        self.state = TrainingState(task, self.optimizations, self.ema, config)

        self.step = 0
        """Number of optimizer steps, including skipped ones."""
        self.elapsed_s = 0.0
        """Training time, including that before the last resume."""
        self.durations: dict[str, float] = {}
        """Seconds of the last validation and of the last checkpoint."""
        self.checkpoints_folder = as_path(config.checkpoints_folder)
        self.checkpoints = Checkpoints(self.checkpoints_folder, config.keep_checkpoints, task.best)
        self.results_folder = as_path(config.results_folder)
        options = {"model": task.describe(), "training": config.to_dict()}
        self.tracking = Tracking(self.accelerator, self.results_folder, options)

    # Public interface

    @property
    def optimization(self) -> Optimization:
        """Optimizers, learning rate and skipped steps of the model itself."""
        return next(iter(self.optimizations.values()))

    @property
    def averaged_model(self) -> nn.Module:
        """The model to use and save: averaged weights, in eval mode."""
        return self.ema.ema_model.eval()

    @contextmanager
    def trackers(self, project_name: str = DEFAULT_PROJECT, run_name: str | None = None):
        """Names the run in wandb or TensorBoard; closes it afterwards."""
        with self.tracking.named(project_name, run_name):
            yield

    def train(self, resume: str | Path | None = None) -> None:
        """Trains from the current step until `num_train_steps` or `max_duration_s`.

        With `resume`, first restores a checkpoint (see `resume`). Without it, a new run raises
        `FileExistsError` if `checkpoints_folder` holds checkpoints of an earlier run.

        Ctrl-C finishes the current step, saves, prints how to resume and raises KeyboardInterrupt.
        After `max_skipped_steps` consecutive steps with NaN or infinity, saves the state from
        before the first of them and raises `NonFiniteTraining`. Raises `CheckpointNotSaved` if the
        disk is full and `LostProcess` if another process died; earlier checkpoints are unchanged.
        """
        if not torch.is_grad_enabled():
            raise ValueError(
                "gradients are off, by torch.no_grad, inference_mode or set_grad_enabled: train "
                "outside of it"
            )
        for optimization in self.optimizations.values():
            optimization.check_trainable()
        if resume is not None:
            self.resume(resume)
        elif self.step == 0:
            on_main(self.accelerator, self.checkpoints.check_unused)
        with lost_process_errors(self.accelerator), self.tracking.running(self.step):
            if not self.is_trial:
                on_main(self.accelerator, lambda: self.task.begin(self.results_folder))
            batches, meters = self.open_batches(), Meters(self.task)
            started = time.monotonic() - self.elapsed_s
            interrupted = False
            bar = Progress(
                self.config, self.task.shown, self.step, self.accelerator.is_main_process
            )
            with naming_dead_workers(), Interruptible() as interruptible, bar:
                while not self.finished and not interrupted:
                    self.train_step(batches, meters)
                    self.elapsed_s = time.monotonic() - started
                    self._check_finite()
                    self._report(meters, bar)
                    interrupted = any_process(self.accelerator, interruptible.requested)
            folder = self.save_now()
            if interrupted:
                if not self.is_trial:
                    self.accelerator.print(
                        f"\nStopped after step {self.step}; saved to {folder}.\n"
                        f'To resume: trainer.train(resume="{folder}")\n'
                        f"or on the command line: the same command with --resume {folder}"
                    )
                raise KeyboardInterrupt
            self._finish()

    @property
    def finished(self) -> bool:
        """True at the last step, or when the time is over."""
        limit = self.config.max_duration_s
        # Clocks differ between processes.
        over = limit is not None and any_process(self.accelerator, self.elapsed_s >= limit)
        return self.step >= self.config.num_train_steps or over

    def open_batches(self) -> Iterator[Any]:
        """Batches from the current step on."""
        return self.task.batches(self.step * self.config.grad_accum_every)

    # One step

    def train_step(self, batches: Iterator[Any], meters: Meters) -> None:
        """Takes one optimizer step on the next batches."""
        num_passes = self.config.grad_accum_every
        active = {n: o for n, o in self.optimizations.items() if o.is_active(self.step)}
        for name, optimization in active.items():
            self.modules[name].train()
            rate = optimization.set_learning_rate(self.step, self.elapsed_s)
            meters.add({f"{self._prefix(name)}learning_rate": rate})
        for number in range(num_passes):
            with meters.waiting():
                batch = next(batches)
            with self._micro_step(number, list(active.values())) as micro:
                meters.add(self.task.step(batch, micro), self.task.sizes(batch))
        self.arithmetic_check.check(self.accelerator)
        taken = set()
        for name, optimization in active.items():
            check_all_have_gradients(self.accelerator, optimization.module)
            norm = optimization.apply_gradients()
            if norm is not None:
                taken.add(name)
                meters.add({f"{self._prefix(name)}grad_norm": torch.tensor(norm)})
            meters.add({f"{self._prefix(name)}skipped_steps": optimization.skips.total})
        if self.optimization.name in taken:
            self.ema.update()
        self.task.after_step(frozenset(taken))
        meters.steps += 1
        self.step += 1

    def _prefix(self, name: str) -> str:
        """Prefix in the log: none for the model itself."""
        return "" if name == self.optimization.name else f"{name}_"

    @contextmanager
    def _micro_step(self, number: int, active: list[Optimization]) -> Iterator[MicroStep]:
        """Makes a pass repeatable; averages over processes after the last one."""
        process, device = self.accelerator.process_index, self.accelerator.device
        seed = keyed_seed("step", self.config.seed, self.step, number, process)
        num_passes = self.config.grad_accum_every
        with ExitStack() as stack:
            if number < num_passes - 1:
                for optimization in active:
                    stack.enter_context(self.accelerator.no_sync(optimization.module))
            # Without a list, it saves and restores the state of every visible GPU, used or not.
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            yield MicroStep(self.step, generator, num_passes, self.accelerator, self.modules)

    # Between steps

    def _report(self, meters: Meters, progress: Progress) -> None:
        config = self.config
        if self.step % config.log_every_step == 0 or self.finished:
            values = meters.read()
            self.tracking.log(values, self.step)
            progress.show(values)
        progress.update(self.step, self.elapsed_s)
        if self.finished:
            return
        if self.step % config.checkpoint_every_step == 0:
            self.save_now()
        if self.step % config.validate_every_step == 0:
            self._keep_if_best(self.validate())

    def validate(self) -> dict[str, float | int]:
        """Measures the averaged model on held-out data, logs and shows examples."""
        with self._timed("validation"):
            path = self.results_folder / f"step-{self.step}"
            values, pictures = self.task.validate(self.averaged_model, path, self.is_trial)
        self.tracking.log(values, self.step)
        self.tracking.log_pictures(pictures, self.step)
        self.accelerator.wait_for_everyone()
        return values

    def _check_finite(self) -> None:
        for optimization in self.optimizations.values():
            if optimization.skips.in_a_row >= self.config.max_skipped_steps:
                # Old checkpoints are not removed: the values may have diverged much earlier.
                folder = self.checkpoints.path(self.step)
                self.save(folder)
                main = optimization is self.optimization
                raise NonFiniteTraining(optimization.explain_skips(self.step, folder, main))

    def _finish(self) -> None:
        self._keep_if_best(self.validate())
        model = self.averaged_model
        if self.task.finishes_with_best and self.accelerator.is_main_process:
            model = self._best_model()
        if values := self.task.finish(model, self.results_folder, self.is_trial):
            self.tracking.log(values, self.step)
        if self.accelerator.is_main_process:
            path = self.results_folder / "curves.png"
            plot_curves(read_log(self.tracking.path), self.task.curves, path)

    def _best_model(self) -> nn.Module:
        """The averaged model of the best validation."""
        model, step = self.averaged_model, self.checkpoints.best_validation().get("step")
        if step in (None, self.step):
            return model
        model = copy.deepcopy(model)
        model.load_state_dict(averaged_weights(load_state(self.checkpoints.folder / BEST)))
        if not self.is_trial:
            self.accelerator.print(
                f"The best validation was that of step {step}: its weights are saved, not those of "
                f"step {self.step}"
            )
        return model

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.durations[name] = time.monotonic() - started

    # State

    def save(self, folder: str | Path) -> None:
        """Saves a checkpoint atomically, or raises `CheckpointNotSaved`."""
        on_main(self.accelerator, lambda: save_state(as_path(folder), *self._gathered()))

    def load(self, folder: str | Path) -> None:
        """Restores a checkpoint from `save`; see `resume`."""
        self.resume(as_path(folder))

    def resume(self, which: str | Path) -> Path | None:
        """Restores a checkpoint and returns its folder, or None without one.

        `which` is a folder, "latest" for the last checkpoint in `checkpoints_folder`, or "auto" for
        the last undamaged one, if any. Training options may differ from the checkpoint's, except
        those that determine tensors; the learning rate then follows the schedule of the new
        `num_train_steps`. Raises, before anything is changed, `FileNotFoundError`,
        `DamagedCheckpoint` naming the newest undamaged one, or `ValueError` naming the differences.
        """
        folder = on_main(self.accelerator, lambda: self.checkpoints.choose(which))
        if folder is None:
            return None
        state = load_state(folder)
        self.step, self.elapsed_s = self.state.restore(state)
        self.accelerator.print(f"Resuming from {folder}, step {self.step}")
        if changes := self.state.changes(state):
            self.accelerator.print(f"Options that changed: {', '.join(changes)}")
        if names := self.state.no_longer_held_out(state):
            warnings.warn(
                f"{len(names)} of the files that the run of {folder} holds out are not held out "
                f"here, such as {names[0]}: to hold them out, copy held_out.json of that run to "
                f"{self.results_folder} before",
                stacklevel=2,
            )
        return folder

    def save_now(self) -> Path:
        """Saves a checkpoint in `checkpoints_folder` and removes old ones."""
        with self._timed("checkpoint"):
            return on_main(self.accelerator, lambda: self.checkpoints.save(*self._gathered()))

    def _gathered(self) -> SavedState:
        return self.state.gather(self.step, self.elapsed_s)

    def _keep_if_best(self, values: dict[str, float | int]) -> None:
        value = values[self.task.best.name]
        on_main(self.accelerator, lambda: self.checkpoints.keep_if_best(value, *self._gathered()))

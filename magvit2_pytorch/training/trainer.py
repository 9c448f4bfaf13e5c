"""VideoTokenizerTrainer: a folder of videos in, a trained tokenizer out."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch

from magvit2_pytorch.data import naming_dead_workers
from magvit2_pytorch.options import check_known, keyword_signature
from magvit2_pytorch.seeds import keyed_seed
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.adversary import build_adversaries
from magvit2_pytorch.training.arithmetic_check import ArithmeticCheck
from magvit2_pytorch.training.averaging import build_average
from magvit2_pytorch.training.backward import Backward
from magvit2_pytorch.training.checkpoints import Checkpoints
from magvit2_pytorch.training.config import TrainingConfig
from magvit2_pytorch.training.datasets import open_datasets, open_images
from magvit2_pytorch.training.dry_run import dry_run
from magvit2_pytorch.training.interrupt import Interruptible
from magvit2_pytorch.training.latent_statistics import record_latents
from magvit2_pytorch.training.meters import Meters
from magvit2_pytorch.training.mixed import mixed_batches
from magvit2_pytorch.training.not_finite import NonFiniteTraining
from magvit2_pytorch.training.objective import Autoencoder, Objective, find_perceptual
from magvit2_pytorch.training.optimizer import build_optimizers
from magvit2_pytorch.training.plan import Plan
from magvit2_pytorch.training.plots import plot_curves
from magvit2_pytorch.training.processes import (
    any_process,
    build_accelerator,
    check_all_have_gradients,
    naming_lost_processes,
    on_main,
)
from magvit2_pytorch.training.progress import Progress
from magvit2_pytorch.training.run_state import RunState
from magvit2_pytorch.training.state import State, load_state, save_state
from magvit2_pytorch.training.tracking import DEFAULT_PROJECT, Tracking, read_log
from magvit2_pytorch.training.update import Update
from magvit2_pytorch.training.validation import validate, write_examples
from magvit2_pytorch.types import Clips, Codes, Image, Video


class VideoTokenizerTrainer:
    """Trains a `VideoTokenizer` on a folder of videos or images, or on any dataset of clips.

    Options are the fields of `TrainingConfig`, by keyword. `dataset_folder` may also be a list
    file, a table or one file (see `magvit2_pytorch.data`); a `dataset` gives clips `c t h w`
    (or images `c h w`) in [-1, 1] instead. What is held out for validation is `valid_dataset`,
    or a share of the files. With `image_folder` or `image_dataset` a share `image_frac` of the
    forward passes see images instead: one tokenizer for both. `perceptual_loss` is a module of
    the user's own in place of the network that `perceptual_weights` names: called with
    reconstruction and real frames `b c t h w`, it gives a scalar. Everything about devices and
    processes is accelerate's.
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        *,
        dataset: Clips | None = None,
        valid_dataset: Clips | None = None,
        dataset_folder: str | Path | None = None,
        dataset_type: Literal["videos", "images"] = "videos",
        image_dataset: Clips | None = None,
        image_folder: str | Path | None = None,
        perceptual_loss: torch.nn.Module | None = None,
        accelerate_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ):
        check_known("the trainer", options, [field.name for field in fields(TrainingConfig)])
        self.config = config = TrainingConfig(**options)
        perceptual = find_perceptual(config, perceptual_loss)
        self.accelerator = build_accelerator(config, accelerate_kwargs or {})
        self.data, self.valid_data = open_datasets(
            config, tokenizer.config, dataset, valid_dataset, dataset_folder, dataset_type
        )
        self.images, self.valid_images = open_images(
            config, tokenizer.config, image_dataset, image_folder
        )

        self.tokenizer = tokenizer.to(self.accelerator.device)
        if config.checkpoint_activations:
            tokenizer.checkpoint_activations()
        self.ema = build_average(self.tokenizer, config).to(self.accelerator.device)
        self.objective = Objective(
            tokenizer.quantizer,
            config.reconstruction_loss,
            config.reconstruction_loss_weight,
            config.quantizer_loss_weight,
            perceptual if perceptual is None else perceptual.to(self.accelerator.device),
            config.perceptual_loss_weight,
            config.perceptual_num_frames,
            config.precision,
        )
        autoencoder = Autoencoder(self.tokenizer, config.precision)
        self.autoencoder, *self.optimizers = self.accelerator.prepare(
            autoencoder, *build_optimizers(self.tokenizer, config)
        )
        self.adversaries = build_adversaries(tokenizer.config.channels, config, self.accelerator)
        self.backward = Backward(
            self.tokenizer, self.objective, self.adversaries, config, self.accelerator
        )
        checks = config.check_arithmetic and not config.compile
        self.arithmetic_check = ArithmeticCheck(
            (tokenizer, *(adversary.discriminator for adversary in self.adversaries)),
            config.precision if checks else "fp32",
        )
        self.update = Update(self.autoencoder, self.optimizers, self.ema, config, self.accelerator)
        self._forward = torch.compile(self.autoencoder) if config.compile else self.autoencoder
        self.state = RunState(self.tokenizer, self.update, self.adversaries)

        self.step = 0
        """Optimizer steps taken, those skipped for numbers that are not finite included."""
        self.elapsed_s = 0.0
        """Time spent training, earlier runs of the same training included."""
        self.checkpoints_folder = Path(config.checkpoints_folder)
        self.checkpoints = Checkpoints(self.checkpoints_folder, config.keep_checkpoints)
        self.results_folder = Path(config.results_folder)
        options = {"model": tokenizer.config.to_dict(), "training": config.to_dict()}
        self.tracking = Tracking(self.accelerator, self.results_folder, options)

    # What a user asks of it

    @property
    def ema_tokenizer(self) -> VideoTokenizer:
        """The tokenizer with averaged weights, in eval mode: the one to use and to save."""
        return self.ema.ema_model.eval()

    def tokenize(self, video: Video | Image) -> Codes:
        """Codes by the averaged tokenizer."""
        return self.ema_tokenizer.tokenize(video.to(self.accelerator.device))

    @contextmanager
    def trackers(self, project_name: str = DEFAULT_PROJECT, run_name: str | None = None):
        """Names this run in wandb or TensorBoard, and closes it properly."""
        with self.tracking.named(project_name, run_name):
            yield

    def train(self, resume: str | Path | None = None) -> None:
        """Trains until `num_train_steps` or `max_duration_s`, from where it stands.

        `resume` first goes back to a checkpoint, see `resume`. What an earlier run left in
        `checkpoints_folder` is moved beside it when a new one starts there.

        Ctrl-C ends the step in hand, saves, says how to go on and raises KeyboardInterrupt.
        When `max_skipped_steps` in a row came out as NaN or infinite, saves the state as it was
        before the first of them and raises `NonFiniteTraining`. Raises `CheckpointNotSaved` where
        the disk is full, `LostProcess` where another process died; earlier checkpoints stay.
        """
        if resume is not None:
            self.resume(resume)
        elif self.step == 0:
            on_main(self.accelerator, self.checkpoints.set_aside)
        with naming_lost_processes(self.accelerator), self.tracking.running(self.step):
            self._train()

    def _train(self) -> None:
        start = self.step * self.config.grad_accum_every
        batches = mixed_batches(self.data, self.images, self.config, self.accelerator, start)
        meters = Meters(self.tokenizer, self.accelerator)
        progress = Progress(self.config, self.step, self.accelerator.is_main_process)
        started = time.monotonic() - self.elapsed_s
        interrupted = False
        with naming_dead_workers(), Interruptible() as interruptible, progress:
            while not self.finished and not interrupted:
                self.train_step(batches, meters)
                self.elapsed_s = time.monotonic() - started
                self._check_finite()
                self._report(meters, progress)
                interrupted = any_process(self.accelerator, interruptible.requested)
        self.save_now()
        if interrupted:
            self._explain_resume()
            raise KeyboardInterrupt
        self._finish()

    def dry_run(self) -> Plan:
        """Tries everything that `train` does, undoes it, and says what training will take.

        Nothing is left behind but decoded frames in `cache_dir`; see `training.dry_run`.
        """
        with naming_lost_processes(self.accelerator):
            return dry_run(self)

    @property
    def finished(self) -> bool:
        limit = self.config.max_duration_s
        # Clocks differ between processes.
        over = limit is not None and any_process(self.accelerator, self.elapsed_s >= limit)
        return self.step >= self.config.num_train_steps or over

    # One step

    def train_step(self, batches: Iterator[torch.Tensor], meters: Meters) -> None:
        """Reconstruct, compare, step, average: one optimizer step on the next batches."""
        accumulate = self.config.grad_accum_every
        self._forward.train()
        learning_rate = self.update.set_learning_rate(self.step, self.elapsed_s)
        for micro_step in range(accumulate):
            with meters.waiting():
                video = next(batches)
            last = micro_step == accumulate - 1
            sync = nullcontext() if last else self.accelerator.no_sync(self.autoencoder)
            with sync, self._keyed_randomness(micro_step) as generator:
                out = self._forward(video)
                self.backward(video, out, self.step, generator, meters, sync=last)
        self.arithmetic_check.check(self.accelerator)
        check_all_have_gradients(self.accelerator, self.autoencoder)
        meters.add_step(learning_rate, self.update.apply())
        for adversary in self.adversaries:
            if adversary.runs(self.step):
                check_all_have_gradients(self.accelerator, adversary.module)
                meters.add_values(adversary.apply_gradients(self.step))
        self.step += 1

    @contextmanager
    def _keyed_randomness(self, micro_step: int):
        """Draws depend on seed, step and process alone, so a resumed run repeats them."""
        process, device = self.accelerator.process_index, self.accelerator.device
        seed = keyed_seed("step", self.config.seed, self.step, micro_step, process)
        # Unless told, it saves and restores the state of every GPU in sight, used or not.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield torch.Generator().manual_seed(seed)

    # Between steps

    def _report(self, meters: Meters, progress: Progress) -> None:
        config = self.config
        if self.step % config.log_every_step == 0 or self.finished:
            values = meters.read() | {"skipped_steps": self.update.skips.total}
            values["skipped_files"] = len(getattr(self.data, "skipped", ()))
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
        """Measures the averaged tokenizer on held-out clips, logs it and writes examples."""
        values, pictures = {}, {}
        for kind, held_out in {"clip": self.valid_data, "image": self.valid_images}.items():
            if held_out is None:
                continue
            found, examples = validate(
                self.ema_tokenizer,
                held_out,
                self.config,
                self.accelerator,
                self.objective.perceptual,
            )
            prefix = "valid/image_" if kind == "image" else "valid/"
            values |= {f"{prefix}{name}": value for name, value in found.items()}
            if self.accelerator.is_main_process:
                name = f"step-{self.step}-{kind}"
                paths = write_examples(examples, self.results_folder, name, self.config.fps)
                pictures |= {f"valid/{kind}-{number}": path for number, path in enumerate(paths)}
        self.tracking.log(values, self.step)
        self.tracking.log_pictures(pictures, self.step)
        self.accelerator.wait_for_everyone()
        return values

    def _check_finite(self) -> None:
        for owner in (self.update, *self.adversaries):
            if owner.skips.in_a_row >= self.config.max_skipped_steps:
                # Nothing is pruned: the numbers may have been on a bad way for long.
                folder = self.checkpoints.path(self.step)
                self.save(folder)
                name = getattr(owner, "name", None)
                raise NonFiniteTraining(owner.skips.explanation(self.step, folder, name))

    def _finish(self) -> None:
        self._keep_if_best(self.validate())
        if values := record_latents(self.ema_tokenizer, self.data, self.config):
            self.tracking.log(values, self.step)
        if self.accelerator.is_main_process:
            self.ema_tokenizer.save_pretrained(self.results_folder / "tokenizer")
            plot_curves(read_log(self.tracking.path), self.results_folder / "curves.png")

    # State

    def save(self, folder: str | Path) -> None:
        """Writes all that training needs to go on: safetensors and JSON, whole or not at all.

        Raises `CheckpointNotSaved` where there is no room for it.
        """
        on_main(self.accelerator, lambda: save_state(Path(folder), *self._gathered()))

    def load(self, folder: str | Path) -> None:
        """Goes back to what `save` wrote; see `resume`."""
        self.resume(Path(folder))

    def resume(self, which: str | Path) -> Path | None:
        """Goes back to a checkpoint; returns it, None if there is none.

        `which` is its folder, or of `checkpoints_folder` "latest" the last one, or "auto" the
        last one that is not damaged, if there is any. Options may change, and the schedule of
        the learning rate then is that of the new `num_train_steps` from here on; those that
        tensors depend on may not. Raises before anything is changed: `FileNotFoundError`,
        `DamagedCheckpoint` naming the newest whole one, `ValueError` naming what does not fit.
        """
        folder = on_main(self.accelerator, lambda: self.checkpoints.choose(which))
        if folder is None:
            return None
        state = load_state(folder)
        self.step, self.elapsed_s = self.state.restore(state)
        self.accelerator.print(f"Going on from {folder}, step {self.step}")
        if changes := self.state.changes(state):
            self.accelerator.print(f"With other options from here on: {', '.join(changes)}")
        return folder

    def save_now(self) -> Path:
        """Saves under the checkpoints folder, named by the step, and removes old ones."""
        return on_main(self.accelerator, lambda: self.checkpoints.save(*self._gathered()))

    def _gathered(self) -> State:
        return self.state.gather(self.step, self.elapsed_s)

    def _keep_if_best(self, values: dict[str, float | int]) -> None:
        def keep() -> None:
            self.checkpoints.keep_if_best(values["valid/psnr"], *self._gathered())

        on_main(self.accelerator, keep)

    def _explain_resume(self) -> None:
        folder = self.checkpoints.path(self.step)
        self.accelerator.print(
            f"\nStopped after step {self.step}; saved to {folder}.\n"
            f'To go on: trainer.train(resume="{folder}")\n'
            f"or on the command line: the same command with --resume {folder}"
        )


VideoTokenizerTrainer.__signature__ = keyword_signature(
    TrainingConfig,
    "tokenizer",
    dataset=None,
    valid_dataset=None,
    dataset_folder=None,
    dataset_type="videos",
    image_dataset=None,
    image_folder=None,
    perceptual_loss=None,
    accelerate_kwargs=None,
)

"""The trainer of video tokenizers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch

from magvit2_pytorch.config import check_known, keyword_signature
from magvit2_pytorch.data.workers import naming_dead_workers
from magvit2_pytorch.runtime import keyed_seed
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.arithmetic_check import ArithmeticCheck
from magvit2_pytorch.training.backward import TokenizerGradients
from magvit2_pytorch.training.batches import mixed_batches, open_datasets, open_images
from magvit2_pytorch.training.checkpoints import Checkpoints
from magvit2_pytorch.training.dry_run import dry_run
from magvit2_pytorch.training.gan import build_discriminator_trainers
from magvit2_pytorch.training.latent_statistics import record_latents
from magvit2_pytorch.training.meters import Meters, Progress, plot_curves
from magvit2_pytorch.training.objective import Autoencoder, Objective, load_perceptual
from magvit2_pytorch.training.optimizer import build_ema, build_optimizers
from magvit2_pytorch.training.plan import Plan
from magvit2_pytorch.training.processes import (
    Interruptible,
    any_process,
    build_accelerator,
    check_all_have_gradients,
    lost_process_errors,
    on_main,
)
from magvit2_pytorch.training.run_state import TrainingState
from magvit2_pytorch.training.state import SavedState, load_state, save_state
from magvit2_pytorch.training.tracking import DEFAULT_PROJECT, Tracking, read_log
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.training.update import NonFiniteTraining, Optimization
from magvit2_pytorch.training.validation import validate, write_examples
from magvit2_pytorch.types import Clips, Codes, Image, Video


class VideoTokenizerTrainer:
    """Trains a `VideoTokenizer` on videos, images or any dataset of clips.

    Options are the fields of `TrainingConfig`, as keyword arguments. `dataset_folder` may also be a
    list file, a table or one media file (see `magvit2_pytorch.data`); alternatively, `dataset`
    returns clips `c t h w` (or images `c h w`) in [-1, 1]. Validation uses `valid_dataset`, or a
    fraction of the files. With `image_folder` or `image_dataset`, a fraction `image_frac` of the
    forward passes uses images, so that one tokenizer learns both. `perceptual_loss` is a module
    that replaces the network of `perceptual_weights`: it takes reconstructed and real frames
    `b c t h w` and returns a scalar. Devices and processes are handled by accelerate.
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
        perceptual = load_perceptual(config, perceptual_loss)
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
        self.ema = build_ema(self.tokenizer, config).to(self.accelerator.device)
        if perceptual is not None:
            perceptual.to(self.accelerator.device)
        self.objective = Objective(tokenizer.quantizer, config, perceptual)
        autoencoder = Autoencoder(self.tokenizer, config.precision)
        self.autoencoder, *self.optimizers = self.accelerator.prepare(
            autoencoder, *build_optimizers(self.tokenizer, config)
        )
        self.discriminators = build_discriminator_trainers(
            tokenizer.config.channels, config, self.accelerator
        )
        self.gradients = TokenizerGradients(
            self.tokenizer, self.objective, self.discriminators, config, self.accelerator
        )
        checks = config.check_arithmetic and not config.compile
        self.arithmetic_check = ArithmeticCheck(
            (tokenizer, *(discriminator.network for discriminator in self.discriminators)),
            config.precision if checks else "fp32",
        )
        self.optimization = Optimization(
            self.autoencoder, self.optimizers, self.ema, config, self.accelerator
        )
        self._forward = torch.compile(self.autoencoder) if config.compile else self.autoencoder
        self.state = TrainingState(self.tokenizer, self.optimization, self.discriminators)

        self.step = 0
        """Number of optimizer steps, including skipped ones."""
        self.elapsed_s = 0.0
        """Training time, including that before the last resume."""
        self.checkpoints_folder = Path(config.checkpoints_folder)
        self.checkpoints = Checkpoints(self.checkpoints_folder, config.keep_checkpoints)
        self.results_folder = Path(config.results_folder)
        options = {"model": tokenizer.config.to_dict(), "training": config.to_dict()}
        self.tracking = Tracking(self.accelerator, self.results_folder, options)

    # Public interface

    @property
    def ema_tokenizer(self) -> VideoTokenizer:
        """The tokenizer to use and save: averaged weights, in eval mode."""
        return self.ema.ema_model.eval()

    def tokenize(self, video: Video | Image) -> Codes:
        """Codes of a video or image from the averaged tokenizer."""
        return self.ema_tokenizer.tokenize(video.to(self.accelerator.device))

    @contextmanager
    def trackers(self, project_name: str = DEFAULT_PROJECT, run_name: str | None = None):
        """Names the run in wandb or TensorBoard, and closes it at the end."""
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
        if resume is not None:
            self.resume(resume)
        elif self.step == 0:
            on_main(self.accelerator, self.checkpoints.check_unused)
        with lost_process_errors(self.accelerator), self.tracking.running(self.step):
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
        """Runs every part of `train` once and estimates memory, time and disk usage.

        Restores the state at the end; only decoded frames in `cache_dir` remain; see
        `training.dry_run`.
        """
        with lost_process_errors(self.accelerator):
            return dry_run(self)

    @property
    def finished(self) -> bool:
        limit = self.config.max_duration_s
        # Clocks differ between processes.
        over = limit is not None and any_process(self.accelerator, self.elapsed_s >= limit)
        return self.step >= self.config.num_train_steps or over

    # One step

    def train_step(self, batches: Iterator[torch.Tensor], meters: Meters) -> None:
        """Takes one optimizer step on the next batches."""
        accumulate = self.config.grad_accum_every
        self._forward.train()
        learning_rate = self.optimization.set_learning_rate(self.step, self.elapsed_s)
        for micro_step in range(accumulate):
            with meters.waiting():
                video = next(batches)
            last = micro_step == accumulate - 1
            sync = nullcontext() if last else self.accelerator.no_sync(self.autoencoder)
            with sync, self._keyed_randomness(micro_step) as generator:
                out = self._forward(video)
                self.gradients.accumulate(video, out, self.step, generator, meters, sync=last)
        self.arithmetic_check.check(self.accelerator)
        check_all_have_gradients(self.accelerator, self.autoencoder)
        meters.add_step(learning_rate, self.optimization.apply_gradients())
        for discriminator in self.discriminators:
            if discriminator.is_active(self.step):
                check_all_have_gradients(self.accelerator, discriminator.module)
                meters.add_values(discriminator.apply_gradients(self.step))
        self.step += 1

    @contextmanager
    def _keyed_randomness(self, micro_step: int):
        """Makes random draws repeatable: they depend on seed, step and process."""
        process, device = self.accelerator.process_index, self.accelerator.device
        seed = keyed_seed("step", self.config.seed, self.step, micro_step, process)
        # Without a list, it saves and restores the state of every visible GPU, used or not.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield torch.Generator().manual_seed(seed)

    # Between steps

    def _report(self, meters: Meters, progress: Progress) -> None:
        config = self.config
        if self.step % config.log_every_step == 0 or self.finished:
            values = meters.read() | {"skipped_steps": self.optimization.skips.total}
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
        """Measures the averaged tokenizer on held-out clips, logs and writes examples."""
        values, pictures = {}, {}
        for kind, held_out in {"clip": self.valid_data, "image": self.valid_images}.items():
            if held_out is None:
                continue
            results, examples = validate(
                self.ema_tokenizer,
                held_out,
                self.config,
                self.accelerator,
                self.objective.perceptual,
            )
            prefix = "valid/image_" if kind == "image" else "valid/"
            values |= {f"{prefix}{name}": value for name, value in results.items()}
            if self.accelerator.is_main_process:
                name = f"step-{self.step}-{kind}"
                paths = write_examples(examples, self.results_folder, name, self.config.fps)
                pictures |= {f"valid/{kind}-{number}": path for number, path in enumerate(paths)}
        self.tracking.log(values, self.step)
        self.tracking.log_pictures(pictures, self.step)
        self.accelerator.wait_for_everyone()
        return values

    def _check_finite(self) -> None:
        for owner in (self.optimization, *self.discriminators):
            if owner.skips.in_a_row >= self.config.max_skipped_steps:
                # Old checkpoints are not removed: the values may have diverged much earlier.
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
        """Saves a checkpoint atomically, as safetensors and JSON.

        Raises `CheckpointNotSaved` if it cannot be written.
        """
        on_main(self.accelerator, lambda: save_state(Path(folder), *self._gathered()))

    def load(self, folder: str | Path) -> None:
        """Restores a checkpoint from `save`; see `resume`."""
        self.resume(Path(folder))

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
        return folder

    def save_now(self) -> Path:
        """Saves a checkpoint in `checkpoints_folder` and removes old ones."""
        return on_main(self.accelerator, lambda: self.checkpoints.save(*self._gathered()))

    def _gathered(self) -> SavedState:
        return self.state.gather(self.step, self.elapsed_s)

    def _keep_if_best(self, values: dict[str, float | int]) -> None:
        psnr = values["valid/psnr"]
        on_main(self.accelerator, lambda: self.checkpoints.keep_if_best(psnr, *self._gathered()))

    def _explain_resume(self) -> None:
        folder = self.checkpoints.path(self.step)
        self.accelerator.print(
            f"\nStopped after step {self.step}; saved to {folder}.\n"
            f'To resume: trainer.train(resume="{folder}")\n'
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

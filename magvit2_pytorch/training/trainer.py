"""VideoTokenizerTrainer: a folder of videos in, a trained tokenizer out."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch

from magvit2_pytorch.options import check_known, keyword_signature
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.adversary import build_adversaries
from magvit2_pytorch.training.averaging import build_average
from magvit2_pytorch.training.backward import Backward
from magvit2_pytorch.training.config import TrainingConfig
from magvit2_pytorch.training.datasets import open_datasets, open_images
from magvit2_pytorch.training.interrupt import Interruptible
from magvit2_pytorch.training.latent_statistics import record_latents
from magvit2_pytorch.training.meters import Meters
from magvit2_pytorch.training.mixed import mixed_batches
from magvit2_pytorch.training.objective import Autoencoder, Objective, find_perceptual
from magvit2_pytorch.training.optimizer import build_optimizers
from magvit2_pytorch.training.plots import plot_curves
from magvit2_pytorch.training.processes import build_accelerator
from magvit2_pytorch.training.progress import Progress
from magvit2_pytorch.training.state import (
    flatten_optimizer,
    load_state,
    restore_optimizer,
    save_state,
    under,
    with_prefix,
)
from magvit2_pytorch.training.tracking import Tracking, read_log
from magvit2_pytorch.training.update import Update
from magvit2_pytorch.training.validation import validate, write_examples
from magvit2_pytorch.types import Clips, Codes, Image, Video

DEFAULT_PROJECT = "magvit2"


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
        self.update = Update(self.autoencoder, self.optimizers, self.ema, config, self.accelerator)
        self._forward = torch.compile(self.autoencoder) if config.compile else self.autoencoder

        self.step = 0
        """Optimizer steps taken, those skipped for numbers that are not finite included."""
        self.elapsed_s = 0.0
        """Time spent training, earlier runs of the same training included."""
        self.checkpoints_folder = Path(config.checkpoints_folder)
        self.results_folder = Path(config.results_folder)
        self.tracking = Tracking(self.accelerator, self.results_folder)
        if self.accelerator.is_main_process:
            self.results_folder.mkdir(parents=True, exist_ok=True)

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
        self.tracking.start(project_name, run_name, self._all_options())
        try:
            yield
        finally:
            self.tracking.end()

    def train(self) -> None:
        """Trains until `num_train_steps` or `max_duration_s`, from where it stands.

        Ctrl-C ends the step in hand, saves, says how to resume and raises KeyboardInterrupt.
        Raises `NonFiniteTraining`, before anything is overwritten, when `max_skipped_steps`
        steps in a row came out as NaN or infinite.
        """
        if not self.tracking.started:
            self.tracking.start(DEFAULT_PROJECT, config=self._all_options())
        if self.step == 0:
            self.tracking.set_aside()
        start = self.step * self.config.grad_accum_every
        batches = mixed_batches(self.data, self.images, self.config, self.accelerator, start)
        meters = Meters(self.tokenizer, self.accelerator)
        progress = Progress(self.config, self.step, self.accelerator.is_main_process)
        started = time.monotonic() - self.elapsed_s
        with Interruptible() as interruptible, progress:
            while not self.finished and not interruptible.requested:
                self.train_step(batches, meters)
                self.elapsed_s = time.monotonic() - started
                self._report(meters, progress)
        self.save_now()
        if interruptible.requested:
            self._explain_resume()
            raise KeyboardInterrupt
        self._finish()

    @property
    def finished(self) -> bool:
        limit = self.config.max_duration_s
        over = limit is not None and self.elapsed_s >= limit
        if self.accelerator.num_processes > 1 and limit is not None:
            # Clocks differ, and a process that stops alone leaves the others waiting.
            flag = torch.tensor(float(over), device=self.accelerator.device)
            over = bool(self.accelerator.reduce(flag, reduction="sum") > 0)
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
        meters.add_step(learning_rate, self.update.apply(self.step))
        for adversary in self.adversaries:
            if adversary.runs(self.step):
                meters.add_values(adversary.apply_gradients(self.step))
        self.step += 1

    @contextmanager
    def _keyed_randomness(self, micro_step: int):
        """Draws depend on seed, step and process alone, so a resumed run repeats them."""
        key = (self.config.seed, self.step, micro_step, self.accelerator.process_index)
        number = hash(key) & 0x7FFF_FFFF_FFFF_FFFF
        with torch.random.fork_rng(enabled=True):
            torch.manual_seed(number)
            yield torch.Generator().manual_seed(number)

    # Between steps

    def _report(self, meters: Meters, progress: Progress) -> None:
        config = self.config
        if self.step % config.log_every_step == 0 or self.finished:
            values = meters.read() | {"skipped_steps": self.update.skipped_steps}
            values["skipped_files"] = len(getattr(self.data, "skipped", ()))
            self.tracking.log(values, self.step)
            progress.show(values)
        progress.update(self.step, self.elapsed_s)
        if self.step % config.validate_every_step == 0 and not self.finished:
            self.validate()
        if self.step % config.checkpoint_every_step == 0 and not self.finished:
            self.save_now()

    def validate(self) -> dict[str, float | int]:
        """Measures the averaged tokenizer on held-out clips, logs it and writes examples."""
        values, paths = {}, []
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
                paths += write_examples(examples, self.results_folder, name, self.config.fps)
        self.tracking.log(values, self.step)
        if self.accelerator.is_main_process:
            for path in paths:
                if path.suffix == ".mp4":
                    self.tracking.log_video("valid/reconstruction", path, self.step)
        self.accelerator.wait_for_everyone()
        return values

    def _finish(self) -> None:
        self.validate()
        if values := record_latents(self.ema_tokenizer, self.data, self.config):
            self.tracking.log(values, self.step)
        if self.accelerator.is_main_process:
            self.ema_tokenizer.save_pretrained(self.results_folder / "tokenizer")
            plot_curves(read_log(self.tracking.path), self.results_folder / "curves.png")

    # State

    def save(self, folder: str | Path) -> None:
        """Writes all that training needs to go on: safetensors and JSON, whole or not at all."""
        if self.accelerator.is_main_process:
            tensors = with_prefix(self.tokenizer.state_dict(), "tokenizer")
            tensors |= with_prefix(self.ema.state_dict(), "ema")
            for number, optimizer in enumerate(self.optimizers):
                tensors |= flatten_optimizer(optimizer, f"optimizer_{number}")
            for adversary in self.adversaries:
                tensors |= with_prefix(adversary.state_dict(), f"adversary_{adversary.name}")
            scaler = self.accelerator.scaler
            values = {
                "step": self.step,
                "elapsed_s": self.elapsed_s,
                "skipped_steps": self.update.skipped_steps,
                "scaler": scaler.state_dict() if scaler is not None else None,
                "tokenizer": self.tokenizer.config.to_dict(),
                "training": self.config.to_dict(),
            }
            save_state(Path(folder), tensors, values)
        self.accelerator.wait_for_everyone()

    def load(self, folder: str | Path) -> None:
        """Goes back to what `save` wrote. Raises `ValueError` where the tokenizer differs."""
        tensors, values = load_state(Path(folder))
        ours = self.tokenizer.config.to_dict()
        differ = [name for name in ours if values["tokenizer"].get(name) != ours[name]]
        if differ:
            raise ValueError(
                f"{folder} was trained with another tokenizer: {', '.join(differ)} differ"
            )
        self.tokenizer.load_state_dict(under(tensors, "tokenizer"))
        self.ema.load_state_dict(under(tensors, "ema"))
        for number, optimizer in enumerate(self.optimizers):
            restore_optimizer(optimizer, tensors, f"optimizer_{number}")
        for adversary in self.adversaries:
            # Discriminators may join a training that began without them.
            if state := under(tensors, f"adversary_{adversary.name}"):
                adversary.load_state_dict(state)
        if self.accelerator.scaler is not None and values["scaler"]:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        self.step, self.elapsed_s = values["step"], values["elapsed_s"]
        self.update.skipped_steps = values["skipped_steps"]

    def save_now(self) -> Path:
        """Saves under the checkpoints folder, named by the step."""
        folder = self.checkpoints_folder / f"step-{self.step}"
        self.save(folder)
        return folder

    def _explain_resume(self) -> None:
        folder = self.checkpoints_folder / f"step-{self.step}"
        self.accelerator.print(
            f"\nStopped after step {self.step}; saved to {folder}.\n"
            f'To go on: trainer.load("{folder}"); trainer.train()\n'
            f"or on the command line: the same command with --resume {folder}"
        )

    def _all_options(self) -> dict[str, Any]:
        return self.tokenizer.config.to_dict() | self.config.to_dict()


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

"""Training of a `VideoTokenizer`: one step reads as the algorithm of VQGAN."""

import math
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.data.split import ADDED_IMAGES, HeldOut
from magvit2_pytorch.data.user_clips import num_clips
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.generators.latent_prior import LatentPrior
from magvit2_pytorch.metrics.codebook import bits_per_pixel
from magvit2_pytorch.quantizers.continuous import STATISTICS
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.batches import (
    check_clips,
    images_per_batch,
    mixed_batches,
    open_datasets,
    training_batches,
)
from magvit2_pytorch.training.clip_task import ClipTask, Reconstruction, load_perceptual
from magvit2_pytorch.training.dry_run import TaskTrainer
from magvit2_pytorch.training.latent_statistics import record_latents
from magvit2_pytorch.training.task import (
    Measured,
    MicroStep,
    TaskPlan,
    Trainable,
    Validation,
    count_text,
    size_text,
)
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.training.validation import validate
from magvit2_pytorch.types import Clips, Codes, Image, Precision, Video


class Autoencoder(nn.Module):
    """Forward pass of training as one module, for wrappers that hook `forward`."""

    def __init__(self, tokenizer: VideoTokenizer, precision: Precision = "fp32"):
        super().__init__()
        self.tokenizer, self.precision = tokenizer, precision

    def forward(self, video: Video, cond: Float[Tensor, "b e"] | None = None) -> Reconstruction:
        with autocast(video.device, self.precision):
            latents = self.tokenizer.encode(video, cond)
            quantized, codes = self.tokenizer.quantize(latents)
            recon = self.tokenizer.decode(quantized, cond, num_frames=video.shape[2])
            terms = self.tokenizer.quantizer.loss_terms(latents)
        return Reconstruction(recon, latents, codes, terms, quantized)


class TokenizerTask(ClipTask):
    """Reconstruction, quantizer, perceptual and adversarial losses of a tokenizer."""

    model: VideoTokenizer
    saved_as = "tokenizer"
    # Latent statistics are measured on the averaged copy itself. The tokenizer in training has
    # none: averaging would move the copy's towards meaningless values that count as measured.
    not_averaged = frozenset(f"quantizer.{name}" for name in STATISTICS)

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        config: TrainingConfig,
        clips: tuple[Clips, Clips],
        images: tuple[Clips, Clips] | tuple[None, None] = (None, None),
        perceptual: nn.Module | None = None,
        held_out: HeldOut | None = None,
    ):
        super().__init__(
            tokenizer, config, clips, perceptual, held_out, quantizer=tokenizer.quantizer
        )
        self.images, self.valid_images = images
        if config.checkpoint_activations:
            tokenizer.checkpoint_activations()
        module = Autoencoder(tokenizer, config.precision)
        ends = tokenizer.encoder.layers[-1], tokenizer.decoder.layers[0]
        self.trainables = self.trainables_of("tokenizer", module, not_for_muon=ends)
        if config.prior_loss_weight:
            self.trainables["prior"] = Trainable(
                module=LatentPrior(tokenizer.quantizer, **(config.prior or {})),
                options=config.prior_optimizer_options(),
                option_prefix="prior_",
            )

    # Training

    @property
    def last_layer(self) -> list[Tensor]:
        return [p for p in self.model.decoder.layers[-1].parameters() if p.ndim >= 2]

    def batches(self, start: int, kind: str | None = None) -> Iterator[Video]:
        # Each time: after a dry run too, a set that draws from everybody's random generators then
        # gives training the same clips as without one.
        sets = {"training": self.data, "validation": self.valid_data}
        sets |= {"training images": self.images, "validation images": self.valid_images}
        for name, clips in sets.items():
            check_clips(clips, f"the {name}", self.model)
        if kind is None:
            return mixed_batches(self.data, self.images, self.config, self.accelerator, start)
        clips, size = {
            "clips": (self.data, self.config.batch_size),
            "images": (self.images, images_per_batch(self.config)),
        }[kind]
        return training_batches(clips, self.config, self.accelerator, start, size)

    def step(self, video: Video, micro: MicroStep) -> Measured:
        """One backward pass through the tokenizer for the losses of all networks."""
        out: Reconstruction = micro.modules["tokenizer"](video)
        loss, proxy, measured = self.frame_losses(video, out, micro)
        prior_loss, terms = 0.0, {}
        if self.config.prior_loss_weight:
            with autocast(video.device, self.config.precision):
                terms["prior"] = micro.modules["prior"](out.quantized, out.codes)
            prior_loss = self.config.prior_loss_weight * terms["prior"]
        value = loss.total + prior_loss
        micro.backward(proxy + loss.latent_loss + prior_loss, value=value)
        if self._usage is not None:
            self._usage.update(out.codes)
        return {"loss": value} | terms | measured

    # Measuring

    def validate(self, model: nn.Module, path: Path, quick: bool = False) -> Validation:
        limit, values, pictures = self.num_to_validate(quick), {}, {}
        for kind, held_out in self.held_out_clips().items():
            results, examples = validate(
                model, held_out, limit, self.config, self.accelerator, self.perceptual
            )
            prefix = "valid/image_" if kind == "image" else "valid/"
            values |= {f"{prefix}{name}": value for name, value in results.items()}
            pictures |= self.write_pictures(examples, path, kind)
        return Validation(values, pictures)

    def held_out_clips(self) -> dict[str, Clips]:
        kinds = {"clip": self.valid_data, "image": self.valid_images}
        return {kind: clips for kind, clips in kinds.items() if clips is not None}

    def finish(self, model: nn.Module, folder: Path, quick: bool = False) -> dict[str, float | int]:
        limit = self.config.num_latent_statistics_clips
        limit = min(limit, self.accelerator.num_processes) if quick else limit
        values = record_latents(model, self.data, limit, self.config.precision)
        return values | super().finish(model, folder)

    # Dry run

    def batch_kinds(self) -> dict[str, float]:
        share = 0.0 if self.images is None else self.config.image_frac
        return {"clips": 1 - share} | ({"images": share} if share else {})

    def plan(self, batch: Video, num_steps: int, examples_per_step: int) -> TaskPlan:
        clip = tuple(batch.shape[2:])
        grid = self.model.latent_grid(*clip)
        tokens = f"{math.prod(grid) * self.model.num_codebooks:,} "
        bits = self.model.quantizer.bits_per_position
        if bits is None:
            tokens += "latents"
        else:
            tokens += f"tokens, {bits_per_pixel(bits, grid, clip):.4f} bits per pixel"
        count = num_clips(self.data)
        num_images = 0 if self.images is None else num_clips(self.images)
        images = "" if num_images == 0 else f" and {count_text(num_images)} images"
        valid = [num_clips(clips) for clips in self.held_out_clips().values()]
        num_valid = count_text(None if None in valid else sum(valid))
        num_skipped = sum(len(getattr(x, "skipped", ())) for x in (self.data, self.images))
        share = 1.0 if num_images == 0 else 1 - self.config.image_frac
        epochs = num_steps * examples_per_step * share / count if count else None
        epochs_text = "" if epochs is None else f"; {epochs:.2f} epochs in total"
        rows = [
            ("clip", f"{size_text(clip)} to {size_text(grid)}: {tokens}"),
            ("data", f"{count_text(count)} clips{images} to train on, {num_valid} held out, "
             f"{num_skipped:,} files skipped so far"),
            ("step", f"{examples_per_step:,} clips{epochs_text}"),
        ]  # fmt: skip
        return TaskPlan(rows, self._warnings(num_steps * examples_per_step * math.prod(grid)))

    def _warnings(self, num_positions: int) -> list[str]:
        """Possible problems of a run with so many positions of latents."""
        config, messages = self.config, []
        effects = {
            "discriminator_start_step": "discriminators never learn",
            "adversarial_start_step": "the tokenizer never has an adversarial loss",
        }
        if self.discriminators:
            messages += [
                f"{effect}: {name} is {getattr(config, name)} and the run ends at step "
                f"{config.num_train_steps}"
                for name, effect in effects.items()
                if getattr(config, name) >= config.num_train_steps
            ]
        size = self.model.codebook_size
        if size and size > num_positions:
            messages.append(
                f"the whole run has {num_positions:,} tokens, fewer than the {size:,} codes of a "
                "codebook: most codes will never be used"
            )
        return messages


class VideoTokenizerTrainer(TaskTrainer):
    """Trains a `VideoTokenizer` on videos, images or any dataset of clips.

    Options are the fields of `TrainingConfig`, as keyword arguments. `dataset_folder` is a `Source`
    of `find_media`; alternatively, `dataset` returns clips `c t h w` (or images `c h w`) in
    [-1, 1], or items that contain them (see `data.user_clips.as_clip`); it may lack a length.
    Validation uses `valid_dataset`, or a fraction of the files. With `image_folder` or
    `image_dataset`, a fraction `image_frac` of the forward passes uses images. `perceptual_loss`
    replaces the network of `perceptual_weights`: a module that takes reconstructed and real frames
    `b c t h w` and returns a scalar.
    """

    config_class = TrainingConfig
    task: TokenizerTask

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
        perceptual_loss: nn.Module | None = None,
        accelerate_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ):
        config = TrainingConfig.from_dict(options)
        perceptual = load_perceptual(config, perceptual_loss)
        clips, held_out = open_datasets(
            config, tokenizer.config, dataset, valid_dataset, dataset_folder, dataset_type
        )
        images = (None, None)
        if image_dataset is not None or image_folder is not None:
            record = ADDED_IMAGES if dataset_type == "images" else "image"
            images, held_out_images = open_datasets(
                config, tokenizer.config, image_dataset, None, image_folder, "images", record
            )
            held_out = {**held_out, **held_out_images}
        task = TokenizerTask(tokenizer, config, clips, images, perceptual, held_out)
        super().__init__(task, config, accelerate_kwargs)

    tokenizer = property(attrgetter("task.model"), doc="The tokenizer in training.")
    data = property(attrgetter("task.data"), doc="The clips to train on.")
    valid_data = property(attrgetter("task.valid_data"), doc="The clips held out for validation.")
    images = property(attrgetter("task.images"), doc="Images to train on in addition to the clips.")
    valid_images = property(attrgetter("task.valid_images"), doc="The images held out.")
    objective = property(attrgetter("task.objective"), doc="Losses other than adversarial ones.")
    discriminators = property(
        attrgetter("task.discriminators"), doc="Those whose adversarial weight is not 0."
    )
    autoencoder = property(
        attrgetter("optimization.module"),
        doc="Forward pass of training, in its wrapper for several processes.",
    )
    optimizers = property(attrgetter("optimization.optimizers"), doc="Those of the tokenizer.")
    ema_tokenizer = property(attrgetter("averaged_model"), doc="The one to use: averaged weights.")

    def tokenize(self, video: Video | Image) -> Codes:
        """Codes of a video or image from the averaged tokenizer."""
        return self.ema_tokenizer.tokenize(video.to(self.accelerator.device))

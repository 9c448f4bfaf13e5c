"""Training of a `VideoTokenizer` as a task: one step reads as the algorithm of VQGAN."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.data.split import HeldOut
from magvit2_pytorch.data.user_clips import num_clips
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.generators.latent_prior import LatentPrior
from magvit2_pytorch.metrics.codebook import CodebookUsage, bits_per_pixel
from magvit2_pytorch.quantizers.continuous import STATISTICS
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
from magvit2_pytorch.training.batches import (
    check_clips,
    images_per_batch,
    mixed_batches,
    training_batches,
)
from magvit2_pytorch.training.clip_task import ClipTask
from magvit2_pytorch.training.latent_statistics import record_latents
from magvit2_pytorch.training.objective import Autoencoder, Reconstruction
from magvit2_pytorch.training.task import (
    Measured,
    MicroStep,
    Trainable,
    Validation,
)
from magvit2_pytorch.training.tokenizer_plan import TokenizerPlan
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.training.validation import running_quality, validate, write_examples
from magvit2_pytorch.types import Clips, Video


class TokenizerTask(ClipTask):
    """Reconstruction, quantizer, perceptual and adversarial losses of a tokenizer.

    `images`, if any, are a fraction `image_frac` of the passes. `held_out` names the files of the
    held-out clips and images.
    """

    model: VideoTokenizer
    curves = ("loss", "psnr", "learning_rate", "codebook_usage")
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
        self.trainables = {
            "tokenizer": Trainable(
                module=Autoencoder(tokenizer, config.precision),
                options=config.optimizer_options(),
                # They have few channels on one side, and their singular values carry the scale of
                # each latent channel, which Muon's orthogonal steps would make equal.
                not_for_muon=(tokenizer.encoder.layers[-1], tokenizer.decoder.layers[0]),
                fixed_options=("optimizer",),
            ),
            **{d.module_name: d.trainable() for d in self.discriminators},
        }
        if config.prior_loss_weight:
            self.trainables["prior"] = Trainable(
                module=LatentPrior(tokenizer.quantizer, **(config.prior or {})),
                options=config.prior_optimizer_options(),
                option_prefix="prior_",
            )
        self.begin_log()

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
        prior_loss, terms = self._prior_loss(out, micro)
        value = loss.total + prior_loss
        micro.backward(proxy + loss.latent_loss + prior_loss, value=value)
        if self._usage is not None:
            self._usage.update(out.codes)
        return {"loss": value} | terms | measured

    def _prior_loss(
        self, out: Reconstruction, micro: MicroStep
    ) -> tuple[Float[Tensor, ""] | float, dict[str, Tensor]]:
        """Weighted loss of the codes under the prior, 0 without one, and its terms."""
        if not self.config.prior_loss_weight:
            return 0.0, {}
        with autocast(out.quantized.device, self.config.precision):
            nats = micro.modules["prior"](out.quantized, out.codes)
        return self.config.prior_loss_weight * nats, {"prior": nats}

    # Measuring

    def begin_log(self) -> None:
        size, number = self.model.codebook_size, self.model.num_codebooks
        self._usage = None if size is None else CodebookUsage(size, number)

    def end_log(self, means: Mapping[str, float]) -> dict[str, float | int]:
        return super().end_log(means) | running_quality(means, self._usage)

    def validate(self, model: nn.Module, path: Path, quick: bool = False) -> Validation:
        limit = self.accelerator.num_processes if quick else self.config.num_valid_clips
        values, pictures = {}, {}
        for kind, held_out in self.held_out_clips().items():
            results, examples = validate(
                model, held_out, limit, self.config, self.accelerator, self.perceptual
            )
            prefix = "valid/image_" if kind == "image" else "valid/"
            values |= {f"{prefix}{name}": value for name, value in results.items()}
            if self.accelerator.is_main_process:
                name = f"{path.name}-{kind}"
                paths = write_examples(examples, path.parent, name, self.config.fps)
                pictures |= {f"valid/{kind}-{number}": path for number, path in enumerate(paths)}
        return Validation(values, pictures)

    def held_out_clips(self) -> dict[str, Clips]:
        kinds = {"clip": self.valid_data, "image": self.valid_images}
        return {kind: clips for kind, clips in kinds.items() if clips is not None}

    def finish(self, model: nn.Module, folder: Path, quick: bool = False) -> dict[str, float | int]:
        limit = self.config.num_latent_statistics_clips
        limit = min(limit, self.accelerator.num_processes) if quick else limit
        values = record_latents(model, self.data, limit, self.config.precision)
        if self.accelerator.is_main_process:
            model.save_pretrained(folder / "tokenizer")
        return values

    # State

    def describe(self) -> dict[str, Any]:
        return self.model.config.to_dict()

    def parse_description(self, saved: dict[str, Any]) -> dict[str, Any]:
        return TokenizerConfig.from_dict(saved).to_dict()

    # Dry run

    def batch_kinds(self) -> dict[str, float]:
        share = 0.0 if self.images is None else self.config.image_frac
        return {"clips": 1 - share} | ({"images": share} if share else {})

    def plan(self, batch: Video) -> "TokenizerPlan":
        clip = tuple(batch.shape[2:])
        grid = self.model.latent_grid(*clip)
        bits = self.model.quantizer.bits_per_position
        return TokenizerPlan(
            config=self.config,
            clip=clip,
            latent_grid=grid,
            num_codebooks=self.model.num_codebooks,
            codebook_size=self.model.codebook_size,
            bits_per_pixel=None if bits is None else bits_per_pixel(bits, grid, clip),
            num_clips=num_clips(self.data),
            num_images=0 if self.images is None else num_clips(self.images),
            num_valid_clips=_total(map(num_clips, self.held_out_clips().values())),
            num_skipped_files=sum(len(getattr(x, "skipped", ())) for x in (self.data, self.images)),
        )


def _total(numbers: Iterable[int | None]) -> int | None:
    numbers = list(numbers)
    return None if None in numbers else sum(numbers)

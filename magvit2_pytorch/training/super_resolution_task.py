"""Training of a `SuperResolution` on frames that a frozen tokenizer decoded."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.split import HeldOut
from magvit2_pytorch.data.user_clips import num_clips
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.generators.code_space import CodeSpace
from magvit2_pytorch.metrics.quality import psnr
from magvit2_pytorch.super_resolution import SuperResolution, SuperResolutionConfig
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.streaming import inference
from magvit2_pytorch.training.batches import (
    MEDIA_KINDS,
    check_clips,
    clip_spec,
    open_datasets,
    training_batches,
)
from magvit2_pytorch.training.clip_task import ClipTask, Reconstruction, load_perceptual
from magvit2_pytorch.training.dry_run import TaskTrainer
from magvit2_pytorch.training.task import (
    Measured,
    MicroStep,
    TaskPlan,
    Validation,
    count_text,
    size_text,
)
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.training.validation import NUM_EXAMPLES, Example, held_out_videos
from magvit2_pytorch.types import VALUE_RANGE, Clips, Video

Small = Float[Tensor, "b c t y x"]
"""Frames to enlarge."""

WITHOUT_EFFECT = (
    "quantizer_loss_weight", "prior_loss_weight", "prior_learning_rate", "prior", "random_scale",
    "freeze_encoder", "checkpoint_activations", "image_frac", "image_batch_size",
    "num_latent_statistics_clips", "tubelet",
)  # fmt: skip
"""Options of training a tokenizer that have no effect here."""


@dataclass(frozen=True, kw_only=True)
class SuperResolutionTrainingConfig(TrainingConfig):
    """Options of training a `SuperResolution`; those of quantizers have no effect."""

    reconstruction_loss: str = "l1"
    """Reconstruction loss: `mse`, `l1` or `charbonnier`."""
    num_frames: int = 5
    """Frames in a clip: 1 + k * the tokenizer's time factor; other numbers are padded."""
    crop: int = 128
    """Height and width, in pixels, of the high-resolution clips to train on."""
    short_side: int = 256
    """Short side, in pixels, of the high-resolution frames that clips are cut from: `scale` times
    that of the frames that the tokenizer will decode."""
    decoded_frac: float = 0.45
    """Share of the clips that are decoded from their own codes."""
    corrupted_frac: float = 0.45
    """Share of the clips that are decoded from codes with errors, like a generator's. The rest is
    resized only."""
    corruption: float = 0.1
    """Largest share of the digits of such codes that is off by one level."""

    positive = (*TrainingConfig.positive, "crop", "short_side")

    def __post_init__(self):
        super().__post_init__()
        for name in ("decoded_frac", "corrupted_frac", "corruption"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give a number from 0 to 1")
        if self.tubelet is not None:
            raise ValueError(
                "tubelet is not for super-resolution, whose clips are parts of frames already: use "
                "crop and num_frames"
            )
        if self.decoded_frac + self.corrupted_frac > 1:
            raise ValueError(
                f"decoded_frac {self.decoded_frac} and corrupted_frac {self.corrupted_frac}: "
                "their sum is above 1"
            )
        if self.crop > self.short_side:
            raise ValueError(
                f"crop is {self.crop}, more than short_side {self.short_side}: give less"
            )

    def clip_specs(self, model: SuperResolutionConfig, kind: str) -> tuple[ClipSpec, ClipSpec]:
        """Formats of training clips and of held-out squares of `short_side`."""
        valid = clip_spec(self, model, MEDIA_KINDS[kind], self.short_side)
        factor = self.short_side / self.crop
        return replace(valid, image_size=self.crop, random_scale=(factor, factor)), valid


class SuperResolutionTask(ClipTask):
    """Losses of enlarged frames; the tokenizer that decodes their input is frozen."""

    model: SuperResolution
    config: SuperResolutionTrainingConfig
    curves = ("loss", "psnr", "valid/psnr", "learning_rate")
    saved_as = "upscaler"

    def __init__(
        self,
        upscaler: SuperResolution,
        tokenizer: VideoTokenizer,
        config: SuperResolutionTrainingConfig,
        clips: tuple[Clips, Clips],
        perceptual: nn.Module | None = None,
        held_out: HeldOut | None = None,
    ):
        super().__init__(upscaler, config, clips, perceptual, held_out)
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.code_space = CodeSpace.of(tokenizer.quantizer) if config.corrupted_frac else None
        self.frozen = {**self.frozen, "tokenizer": tokenizer}
        first, *_, last = upscaler.network.layer.layers
        # The map that draws patches has channels enough for Muon (benchmarks/LOG.md, section 27).
        ends = (first, last) if upscaler.config.patch_size == 1 else (first,)
        self.trainables = self.trainables_of("upscaler", upscaler, not_for_muon=ends)

    # Training

    @property
    def last_layer(self) -> list[Tensor]:
        return [p for p in self.model.network.layer.layers[-1].parameters() if p.ndim >= 2]

    def batches(self, start: int, kind: str | None = None) -> Iterator[Video]:
        for name, clips in {"training": self.data, "validation": self.valid_data}.items():
            check_clips(clips, f"the {name}", self.model)
        return training_batches(self.data, self.config, self.accelerator, start)

    def step(self, high: Video, micro: MicroStep) -> Measured:
        low = self.low_frames(high, micro.generator)
        with autocast(high.device, self.config.precision):
            out = micro.modules["upscaler"](low)
        loss, proxy, measured = self.frame_losses(high, Reconstruction(out), micro)
        micro.backward(proxy, value=loss.total)
        return {"loss": loss.total} | measured

    def low_frames(self, high: Video, draws: torch.Generator) -> Small:
        """Small frames: decoded, decoded from codes with errors, or resized only.

        Source: training on the degradations of the first stage, SimpleGVR (arXiv 2506.19838).
        """
        config, clean = self.config, self.shrink(high)
        kind = torch.rand(len(high), generator=draws)
        share = config.corruption * torch.rand(len(high), generator=draws)
        share = torch.where(kind < config.corrupted_frac, share, 0.0)
        is_decoded = (kind < config.corrupted_frac + config.decoded_frac).to(high.device)
        decoded = self.decoded(clean, share, draws)
        return torch.where(is_decoded.view(-1, 1, 1, 1, 1), decoded, clean)

    def shrink(self, high: Video) -> Small:
        """Frames with the mean of each `scale` x `scale` pixels."""
        scale = self.model.scale
        return F.avg_pool3d(high, (1, scale, scale)).contiguous()

    def decoded(
        self, video: Video, share: Tensor | None = None, draws: torch.Generator | None = None
    ) -> Video:
        """The tokenizer's reconstruction, with errors in a share of the digits."""
        tokenizer = self.tokenizer
        with inference(tokenizer, self.config.precision):
            quantized, codes = tokenizer.quantize(tokenizer.encode(video))
            if self.code_space is not None and share is not None:
                quantized = tokenizer.decode_codes(self.code_space.corrupted(codes, share, draws))
            recon = tokenizer.decode(quantized, num_frames=video.shape[2])
        return recon.float().clamp(*VALUE_RANGE)

    # Measuring

    @torch.no_grad()
    def validate(self, model: nn.Module, path: Path, quick: bool = False) -> Validation:
        """PSNR of enlarged decoded and resized clips, beside that of bicubic enlargement."""
        accelerator, limit = self.accelerator, self.num_to_validate(quick)
        names = ("psnr", "bicubic_psnr", "clean_psnr", "clean_bicubic_psnr")
        total = torch.zeros(len(names) + 1, device=accelerator.device)
        examples: list[Example] = []
        for high in held_out_videos(self.valid_data, limit, accelerator):
            clean, values = self.shrink(high), []
            for low in (self.decoded(clean), clean):
                with autocast(high.device, self.config.precision):
                    out = model(low).float().clamp(*VALUE_RANGE)
                bicubic = model.bicubic(low).clamp(*VALUE_RANGE)
                values += [float(psnr(out, high)), float(psnr(bicubic, high))]
                if len(values) == 2 and len(examples) < NUM_EXAMPLES:
                    examples.append((high.cpu(), bicubic.cpu(), out.cpu()))
            total += total.new_tensor((*values, 1.0))
        total = accelerator.reduce(total, reduction="sum")
        pictures = self.write_pictures(examples, path, "clip")
        means = (total[:-1] / total[-1]).tolist()
        return Validation(
            {f"valid/{name}": value for name, value in zip(names, means, strict=True)}, pictures
        )

    # Dry run

    def plan(self, batch: Video, num_steps: int, examples_per_step: int) -> TaskPlan:
        low, high = (size_text(x.shape[2:]) for x in (self.shrink(batch[:1]), batch))
        counts = [count_text(num_clips(clips)) for clips in (self.data, self.valid_data)]
        rows = [
            ("clip", f"{low} to {high} pixels"),
            ("data", f"{counts[0]} clips to train on, {counts[1]} held out"),
            ("step", f"{examples_per_step:,} clips"),
        ]
        return TaskPlan(rows, [])


class SuperResolutionTrainer(TaskTrainer):
    """Trains a `SuperResolution` to enlarge what a tokenizer decodes.

    Options are the fields of `SuperResolutionTrainingConfig`, as keyword arguments; data are those
    of `VideoTokenizerTrainer`, at the high resolution. The tokenizer is frozen. Raises `ValueError`
    if it does not fit the upscaler or the size of the clips.
    """

    config_class = SuperResolutionTrainingConfig
    task: SuperResolutionTask

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        upscaler: SuperResolution,
        *,
        dataset: Clips | None = None,
        valid_dataset: Clips | None = None,
        dataset_folder: str | Path | None = None,
        dataset_type: Literal["videos", "images"] = "videos",
        perceptual_loss: nn.Module | None = None,
        accelerate_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ):
        config = SuperResolutionTrainingConfig.from_dict(options)
        check_tokenizer(tokenizer, upscaler, config)
        perceptual = load_perceptual(config, perceptual_loss)
        clips, held_out = open_datasets(
            config, None, dataset, valid_dataset, dataset_folder, dataset_type,
            specs=config.clip_specs(upscaler.config, dataset_type),
        )  # fmt: skip
        task = SuperResolutionTask(upscaler, tokenizer, config, clips, perceptual, held_out)
        super().__init__(task, config, accelerate_kwargs)

    upscaler = property(attrgetter("task.model"), doc="The network in training.")

    @property
    def ema_upscaler(self) -> SuperResolution:
        """The network to use and save: averaged weights, in eval mode."""
        return self.averaged_model


def check_tokenizer(
    tokenizer: VideoTokenizer, upscaler: SuperResolution, config: SuperResolutionTrainingConfig
) -> None:
    """Raises `ValueError` unless the tokenizer decodes frames that the upscaler takes."""
    if not isinstance(tokenizer, VideoTokenizer) or tokenizer.config.dim_cond is not None:
        raise ValueError(
            "super-resolution is trained on frames of a VideoTokenizer without a condition: give "
            "such a one"
        )
    if tokenizer.config.channels != upscaler.config.channels:
        raise ValueError(
            f"the tokenizer's frames have {tokenizer.config.channels} channels, the upscaler takes "
            f"{upscaler.config.channels}: set channels to {tokenizer.config.channels}"
        )
    if tokenizer.codebook_size is None and config.corrupted_frac:
        raise ValueError(
            "this tokenizer is continuous and has no codes to put errors into: set corrupted_frac "
            "to 0"
        )
    factor = upscaler.scale * tokenizer.space_factor
    for name in ("crop", "short_side"):
        if getattr(config, name) % factor:
            below = max(factor, getattr(config, name) // factor * factor)
            raise ValueError(
                f"{name} {getattr(config, name)} is not a multiple of {factor}, the scale times "
                f"the tokenizer's pixels per latent: use {below} or {below + factor}"
            )

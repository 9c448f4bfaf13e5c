"""The trainer of super-resolution."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from torch import nn

from magvit2_pytorch.config import check_known, keyword_signature
from magvit2_pytorch.super_resolution import SuperResolution
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.batches import held_out_names, open_datasets
from magvit2_pytorch.training.dry_run import TaskTrainer
from magvit2_pytorch.training.objective import load_perceptual
from magvit2_pytorch.training.super_resolution_task import (
    SuperResolutionTask,
    SuperResolutionTrainingConfig,
)
from magvit2_pytorch.types import Clips


class SuperResolutionTrainer(TaskTrainer):
    """Trains a `SuperResolution` to enlarge what a tokenizer decodes.

    Options are the fields of `SuperResolutionTrainingConfig`, as keyword arguments; data are those
    of `VideoTokenizerTrainer`, at the high resolution. The tokenizer is frozen. Raises `ValueError`
    if it does not fit the upscaler or the size of the clips.
    """

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
        names = [field.name for field in fields(SuperResolutionTrainingConfig)]
        check_known("the trainer", options, names)
        config = SuperResolutionTrainingConfig(**options)
        check_tokenizer(tokenizer, upscaler, config)
        perceptual = load_perceptual(config, perceptual_loss)
        clips = open_datasets(
            config, None, dataset, valid_dataset, dataset_folder, dataset_type,
            specs=config.clip_specs(upscaler.config, dataset_type),
        )  # fmt: skip
        held_out = held_out_names(dataset_folder, clips)
        task = SuperResolutionTask(upscaler, tokenizer, config, clips, perceptual, held_out)
        super().__init__(task, config, accelerate_kwargs)

    @property
    def upscaler(self) -> SuperResolution:
        """The network in training."""
        return self.task.model

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


SuperResolutionTrainer.__signature__ = keyword_signature(
    SuperResolutionTrainingConfig,
    "tokenizer",
    "upscaler",
    dataset=None,
    valid_dataset=None,
    dataset_folder=None,
    dataset_type="videos",
    perceptual_loss=None,
    accelerate_kwargs=None,
)

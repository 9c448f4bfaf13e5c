"""The trainer of video tokenizers."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from magvit2_pytorch.config import check_known, keyword_signature
from magvit2_pytorch.data.split import ADDED_IMAGES
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.batches import held_out_names, open_datasets, open_images
from magvit2_pytorch.training.dry_run import TaskTrainer
from magvit2_pytorch.training.gan import DiscriminatorLosses
from magvit2_pytorch.training.objective import Objective, load_perceptual
from magvit2_pytorch.training.tokenizer_task import TokenizerTask
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.types import Clips, Codes, Image, Video


class VideoTokenizerTrainer(TaskTrainer):
    """Trains a `VideoTokenizer` on videos, images or any dataset of clips.

    Options are the fields of `TrainingConfig`, as keyword arguments. `dataset_folder` may also be a
    list file, a table or one media file (see `magvit2_pytorch.data`); alternatively, `dataset`
    returns clips `c t h w` (or images `c h w`) in [-1, 1], or items that contain them (see
    `data.user_clips.as_clip`); it may lack a length. Validation uses `valid_dataset`, or a fraction
    of the files. With `image_folder` or `image_dataset`, a fraction `image_frac` of the
    forward passes uses images, so that one tokenizer learns both. `perceptual_loss` is a module
    that replaces the network of `perceptual_weights`: it takes reconstructed and real frames
    `b c t h w` and returns a scalar. Devices and processes are handled by accelerate.
    """

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
        check_known("the trainer", options, [field.name for field in fields(TrainingConfig)])
        config = TrainingConfig(**options)
        perceptual = load_perceptual(config, perceptual_loss)
        clips = open_datasets(
            config, tokenizer.config, dataset, valid_dataset, dataset_folder, dataset_type
        )
        record = ADDED_IMAGES if dataset_type == "images" else "image"
        images = open_images(config, tokenizer.config, image_dataset, image_folder, record)
        held_out = held_out_names(dataset_folder, clips)
        held_out |= held_out_names(image_folder, images, record)
        task = TokenizerTask(tokenizer, config, clips, images, perceptual, held_out)
        super().__init__(task, config, accelerate_kwargs)

    @property
    def tokenizer(self) -> VideoTokenizer:
        """The tokenizer in training."""
        return self.task.model

    @property
    def ema_tokenizer(self) -> VideoTokenizer:
        """The tokenizer to use and save: averaged weights, in eval mode."""
        return self.averaged_model

    def tokenize(self, video: Video | Image) -> Codes:
        """Codes of a video or image from the averaged tokenizer."""
        return self.ema_tokenizer.tokenize(video.to(self.accelerator.device))

    @property
    def data(self) -> Clips:
        """The clips to train on."""
        return self.task.data

    @property
    def valid_data(self) -> Clips:
        """The clips held out for validation."""
        return self.task.valid_data

    @property
    def images(self) -> Clips | None:
        """The images to train on in addition to the clips."""
        return self.task.images

    @property
    def valid_images(self) -> Clips | None:
        """The images held out for validation."""
        return self.task.valid_images

    @property
    def objective(self) -> Objective:
        """Reconstruction, perceptual and quantizer losses."""
        return self.task.objective

    @property
    def discriminators(self) -> list[DiscriminatorLosses]:
        """The discriminators whose adversarial weight is not 0."""
        return self.task.discriminators

    @property
    def autoencoder(self) -> nn.Module:
        """Forward pass of training, in its wrapper for several processes."""
        return self.optimization.module

    @property
    def optimizers(self) -> list[Optimizer]:
        """Optimizers of the tokenizer."""
        return self.optimization.optimizers


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

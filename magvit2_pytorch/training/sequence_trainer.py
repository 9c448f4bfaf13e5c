"""The trainer of 1-D tokenizers."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from torch import nn

from magvit2_pytorch.config import check_known, keyword_signature
from magvit2_pytorch.tokenizer_1d.model_1d import Tokenizer1d
from magvit2_pytorch.training.batches import held_out_names, open_datasets
from magvit2_pytorch.training.dry_run import TaskTrainer
from magvit2_pytorch.training.objective import load_perceptual
from magvit2_pytorch.training.sequence_task import SequenceTask, SequenceTrainingConfig
from magvit2_pytorch.types import Clips


class Tokenizer1dTrainer(TaskTrainer):
    """Trains a `Tokenizer1d` on videos, images or any dataset of clips.

    Options are the fields of `SequenceTrainingConfig`, as keyword arguments; data are those of
    `VideoTokenizerTrainer`. Each forward pass takes a pack of random parts of clips with random
    numbers of tokens.
    """

    task: SequenceTask

    def __init__(
        self,
        tokenizer: Tokenizer1d,
        *,
        dataset: Clips | None = None,
        valid_dataset: Clips | None = None,
        dataset_folder: str | Path | None = None,
        dataset_type: Literal["videos", "images"] = "videos",
        image_folder: str | Path | None = None,
        perceptual_loss: nn.Module | None = None,
        accelerate_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ):
        check_known("the trainer", options, [f.name for f in fields(SequenceTrainingConfig)])
        if image_folder is not None:
            raise ValueError(
                "a 1-D tokenizer takes no additional images: set min_frames to 1, which trains on "
                "single frames too"
            )
        config = SequenceTrainingConfig(**options)
        perceptual = load_perceptual(config, perceptual_loss)
        clips = open_datasets(
            config, tokenizer.config, dataset, valid_dataset, dataset_folder, dataset_type
        )
        held_out = held_out_names(dataset_folder, clips)
        task = SequenceTask(tokenizer, config, clips, perceptual, held_out)
        super().__init__(task, config, accelerate_kwargs)

    @property
    def tokenizer(self) -> Tokenizer1d:
        """The tokenizer in training."""
        return self.task.model

    @property
    def ema_tokenizer(self) -> Tokenizer1d:
        """The tokenizer to use and save: averaged weights, in eval mode."""
        return self.averaged_model


Tokenizer1dTrainer.__signature__ = keyword_signature(
    SequenceTrainingConfig,
    "tokenizer",
    dataset=None,
    valid_dataset=None,
    dataset_folder=None,
    dataset_type="videos",
    image_folder=None,
    perceptual_loss=None,
    accelerate_kwargs=None,
)

"""Batches of clips mixed with batches of images."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import count

from accelerate import Accelerator

from magvit2_pytorch.training.config import TrainingConfig
from magvit2_pytorch.training.datasets import training_batches
from magvit2_pytorch.types import Clips, Video


def mixed_batches(
    clips: Clips, images: Clips | None, config: TrainingConfig, accelerator: Accelerator, start: int
) -> Iterator[Video]:
    """Infinite batches of clips and images, from batch number `start` on.

    The kind of a batch depends only on its number. It is the same in all processes, so a resumed
    run gets the same batches, and no process waits for another one with longer clips.
    """
    images_before = num_image_batches(start, config.image_frac) if images is not None else 0
    clip_batches = training_batches(clips, config, accelerator, start - images_before)
    if images is None:
        yield from clip_batches
        return
    num_images = images_per_batch(config)
    image_batches = training_batches(images, config, accelerator, images_before, num_images)
    for number in count(start):
        images_after = num_image_batches(number + 1, config.image_frac)
        yield next(image_batches if images_after > images_before else clip_batches)
        images_before = images_after


def images_per_batch(config: TrainingConfig) -> int:
    """Images in a forward pass, by default the frames of a batch."""
    return config.image_batch_size or config.batch_size * config.num_frames


def num_image_batches(num_batches: int, image_frac: float) -> int:
    """Number of image batches among the first `num_batches`, evenly spread."""
    return int(num_batches * Fraction(image_frac).limit_denominator(1000))

"""Images among the clips: one tokenizer for both."""

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
    """Endless batches from number `start` on: clips, and images at every so many turns.

    Which turn is whose is a function of its number alone, the same in all processes, so that a
    resumed run meets the same batches and no process waits for one with longer clips.
    """
    images_before = num_image_turns(start, config.image_frac) if images is not None else 0
    clip_batches = training_batches(clips, config, accelerator, start - images_before)
    if images is None:
        yield from clip_batches
        return
    num_images = images_per_batch(config)
    image_batches = training_batches(images, config, accelerator, images_before, num_images)
    for number in count(start):
        images_after = num_image_turns(number + 1, config.image_frac)
        yield next(image_batches if images_after > images_before else clip_batches)
        images_before = images_after


def images_per_batch(config: TrainingConfig) -> int:
    """Images to a forward pass, as many as a batch of clips has frames unless said otherwise."""
    return config.image_batch_size or config.batch_size * config.num_frames


def num_image_turns(turns: int, image_frac: float) -> int:
    """How many of the first `turns` batches are images: as evenly spread as whole numbers allow."""
    return int(turns * Fraction(image_frac).limit_denominator(1000))

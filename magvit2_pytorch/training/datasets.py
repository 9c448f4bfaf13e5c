"""What a run trains on and what it is measured on."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Subset

from magvit2_pytorch.data import (
    ClipSpec,
    ImageDataset,
    InfiniteBatches,
    VideoDataset,
    check_range,
    find_media,
    split_files,
)
from magvit2_pytorch.data.sources import Source
from magvit2_pytorch.functional import range_warning
from magvit2_pytorch.tokenizer.config import TokenizerConfig
from magvit2_pytorch.training.config import TrainingConfig
from magvit2_pytorch.types import Clips, MediaKind

MEDIA_KINDS: dict[str, MediaKind] = {"videos": "video", "images": "image"}
"""Media kind of each `dataset_type`."""


def clip_spec(config: TrainingConfig, tokenizer: TokenizerConfig, kind: MediaKind) -> ClipSpec:
    """The clips that the tokenizer's size and the run's options ask for."""
    return ClipSpec(
        num_frames=config.num_frames if kind == "video" else 1,
        fps=config.fps,
        frame_stride=None if config.fps else config.frame_stride,
        image_size=tokenizer.image_size,
        channels=tokenizer.channels,
        flip=config.flip,
        random_scale=config.random_scale,
    )


def open_datasets(
    config: TrainingConfig,
    tokenizer: TokenizerConfig,
    dataset: Clips | None,
    valid_dataset: Clips | None,
    source: Source | None,
    dataset_type: str,
) -> tuple[Clips, Clips]:
    """Training clips and held-out clips; what the user gave, or a folder split by file.

    Raises before training starts: on no data, on both kinds of it, and on a folder that is
    missing or holds nothing usable.
    """
    if (dataset is None) == (source is None):
        raise ValueError("give either dataset_folder (a folder of media) or dataset")
    if dataset_type not in MEDIA_KINDS:
        raise ValueError(f"dataset_type is {dataset_type!r}: use 'videos' or 'images'")
    if dataset is not None:
        return (dataset, valid_dataset) if valid_dataset else _split_items(dataset, config)

    kind = MEDIA_KINDS[dataset_type]
    spec = clip_spec(config, tokenizer, kind)
    paths = find_media(source, kind)
    if valid_dataset is not None:
        return _open(kind, paths, spec, config), valid_dataset
    if len(paths) > 1:
        train, valid = _hold_out(kind, paths, spec, config)
        return _open(kind, train, spec, config), _open(kind, valid, spec, config, train=False)
    if kind == "image":
        raise ValueError(f"{source} holds one image: training needs two or more, one to measure on")
    return _split_one_video(paths, spec, config)


def _open(
    kind: MediaKind,
    paths: list[Path],
    spec: ClipSpec,
    config: TrainingConfig,
    train: bool = True,
    **options,
) -> Clips:
    if kind == "image":
        return ImageDataset(paths, spec, train=train, seed=config.seed)
    return VideoDataset(
        paths, spec, train=train, seed=config.seed, cache_dir=config.cache_dir, **options
    )


def _hold_out(
    kind: MediaKind, paths: list[Path], spec: ClipSpec, config: TrainingConfig
) -> tuple[list[Path], list[Path]]:
    """Files to train on and files held out, at least one of which can be used.

    Datasets pass over broken files by themselves, but a held-out part with no other would end a
    run at its first validation, hours from now.
    """
    train, valid = split_files(paths, config.valid_frac, config.random_split_seed)
    if any(_usable(kind, path, spec, config) for path in valid):
        return train, valid
    for path in train:
        if len(train) > 1 and _usable(kind, path, spec, config):
            return [p for p in train if p != path], [*valid, path]
    return train, valid  # nothing to be done: the dataset says what is wrong


def _usable(kind: MediaKind, path: Path, spec: ClipSpec, config: TrainingConfig) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the dataset that keeps the file will name it
        try:
            _ = _open(kind, [path], spec, config, train=False)[0]
        except ValueError:
            return False
    return True


def _split_one_video(
    paths: list[Path], spec: ClipSpec, config: TrainingConfig
) -> tuple[Clips, Clips]:
    """The first nine tenths to train on, the rest to measure on."""
    warnings.warn(
        f"{paths[0]} is the only video: its last tenth is held out for validation",
        stacklevel=4,
    )
    train = _open("video", paths, spec, config, frame_range=(0.0, 0.9))
    held_out = replace(spec, pad_short=True)
    return train, _open("video", paths, held_out, config, train=False, frame_range=(0.9, 1.0))


def _split_items(dataset: Clips, config: TrainingConfig) -> tuple[Clips, Clips]:
    numbers = list(range(len(dataset)))
    if len(numbers) < 2:
        raise ValueError(
            f"the dataset has {len(numbers)} item(s): give two or more, or a valid_dataset"
        )
    train, valid = split_files(numbers, config.valid_frac, config.random_split_seed)
    return Subset(dataset, train), Subset(dataset, valid)


def open_images(
    config: TrainingConfig, tokenizer: TokenizerConfig, dataset: Clips | None, source: Source | None
) -> tuple[Clips | None, Clips | None]:
    """Images to see among the clips, and held-out ones; None and None where there are none."""
    if dataset is None and source is None:
        return None, None
    return open_datasets(config, tokenizer, dataset, None, source, "images")


def training_batches(
    dataset: Clips,
    config: TrainingConfig,
    accelerator: Accelerator,
    position: int,
    batch_size: int | None = None,
) -> Iterator[Tensor]:
    """Endless batches `b c t h w` on the device, from batch number `position` on.

    The first one is checked: values outside [-1, 1], and values in [0, 1], raise `ValueError`
    before a step is taken.
    """
    batches = InfiniteBatches(
        dataset,
        batch_size or config.batch_size,
        position=position,
        num_workers=config.num_workers,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        pin_memory=accelerator.device.type == "cuda",
    )
    for number, batch in enumerate(batches):
        if number == 0:
            _check_first(batch, dataset)
        batch = batch[:, :, None] if batch.ndim == 4 else batch
        yield batch.to(accelerator.device, non_blocking=True)


def _check_first(batch: Tensor, dataset: Clips) -> None:
    check_range(batch)
    # What our own datasets read is in range, however bright it is.
    if not isinstance(dataset, VideoDataset | ImageDataset) and (mistake := range_warning(batch)):
        raise ValueError(mistake)

"""Training and held-out data, and batches of clips and images."""

import warnings
from collections.abc import Collection, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Subset

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.data.clips import ClipSpec, check_tubelet
from magvit2_pytorch.data.datasets import ImageDataset, MediaDataset, VideoDataset
from magvit2_pytorch.data.loader import InfiniteBatches
from magvit2_pytorch.data.split import (
    VIDEO_END,
    HeldOut,
    read_held_out,
    split_files,
    split_media,
    split_names,
)
from magvit2_pytorch.data.user_clips import (
    FirstClips,
    StreamedClips,
    num_clips,
    share_of_clips,
    stack_clips,
    user_clips,
)
from magvit2_pytorch.functional import range_warning
from magvit2_pytorch.media.frames import check_range
from magvit2_pytorch.media.sources import Source, find_media
from magvit2_pytorch.super_resolution import SuperResolution, SuperResolutionConfig
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
from magvit2_pytorch.tokenizer_1d.sequence_config import Tokenizer1dConfig
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.types import Clips, MediaKind, Video

NUM_TRIED = 4
"""Items that are tried of each data set before training starts."""

MEDIA_KINDS: dict[str, MediaKind] = {"videos": "video", "images": "image"}
"""Media kind of each `dataset_type`."""


def clip_spec(
    config: TrainingConfig,
    model: TokenizerConfig | Tokenizer1dConfig | SuperResolutionConfig,
    kind: MediaKind,
    image_size: int | tuple[int, int] | None = None,
) -> ClipSpec:
    """The clip format of training; its size is the tokenizer's by default."""
    tubelet = config.tubelet
    if tubelet is not None:
        strides = (model.time_factor, model.space_factor)
        check_tubelet(tubelet, (config.num_frames, *model.height_and_width), strides)
    return ClipSpec(
        num_frames=config.num_frames if kind == "video" else 1,
        fps=config.fps,
        frame_stride=None if config.fps else config.frame_stride,
        image_size=model.image_size if image_size is None else image_size,
        channels=model.channels,
        flip=config.flip,
        random_scale=config.random_scale,
        color_jitter_frac=config.color_jitter_frac,
        tubelet=tubelet and (tubelet if kind == "video" else (1, *tubelet[1:])),
    )


def open_datasets(
    config: TrainingConfig,
    tokenizer: TokenizerConfig | Tokenizer1dConfig | None,
    dataset: Clips | None,
    valid_dataset: Clips | None,
    source: Source | None,
    dataset_type: str,
    record: str | None = None,
    specs: tuple[ClipSpec, ClipSpec] | None = None,
) -> tuple[tuple[Clips, Clips], HeldOut]:
    """Training and held-out clips of a dataset or folder, and their record.

    A folder is split by file, a dataset with a length by item; of a single video the end is held
    out. The record has the names of the held-out files of a folder under `record`, by default
    their kind. `specs` are formats of training and held-out clips, by default that of the
    tokenizer. With `overfit_clips` nothing is held out: the first clips are both. Raises
    `ValueError` or `FileNotFoundError` if there is no data, or both kinds.
    """
    if (dataset is None) == (source is None):
        raise ValueError("give either dataset_folder (a folder of media) or dataset")
    if dataset_type not in MEDIA_KINDS:
        raise ValueError(f"dataset_type is {dataset_type!r}: use 'videos' or 'images'")
    if dataset is not None:
        if config.tubelet is not None and dataset_type == "videos":
            raise ValueError(
                "tubelet cuts parts out of clips that the trainer reads from dataset_folder: give "
                "the tubelet to the ClipSpec of your VideoDataset, or cut your own clips"
            )
        clips, valid = user_clips(dataset), user_clips(valid_dataset)
        if config.overfit_clips is not None:
            return (FirstClips(clips, config.overfit_clips),) * 2, {}
        return (_split_items(clips, config) if valid is None else (clips, valid)), {}

    kind = MEDIA_KINDS[dataset_type]
    spec, valid_spec = specs or (clip_spec(config, tokenizer, kind),) * 2
    written = (config.results_folder, config.checkpoints_folder, config.cache_dir)
    paths = find_media(source, kind, outputs=[folder for folder in written if folder])
    if config.overfit_clips is not None:
        return (FirstClips(_open(kind, paths, spec, config), config.overfit_clips),) * 2, {}
    if valid_dataset is not None:
        train, valid, held_out = _open(kind, paths, spec, config), user_clips(valid_dataset), {}
        if isinstance(valid, MediaDataset):
            name = VIDEO_END if valid.paths == train.paths else record or valid.kind
            held_out = {name: split_names(source, valid.paths)}
        return (train, valid), held_out
    before = read_held_out(as_path(config.results_folder))
    recorded = before.get(record or kind, [])
    if len(paths) > 1 or set(recorded) & set(split_names(source, paths)):
        if ends := before.get(VIDEO_END):
            warnings.warn(
                f"the run holds out the end of {ends[0]}; beside other videos, it may now train on "
                "it",
                stacklevel=3,
            )
        train, valid = _hold_out(source, kind, paths, spec, config, recorded)
        clips = _open(kind, train, spec, config)
        held_out = {record or kind: split_names(source, valid)}
        return (clips, _open(kind, valid, valid_spec, config, train=False)), held_out
    if kind == "image":
        raise ValueError(f"{source} holds one image: give two or more, as one is held out")
    held_out = {VIDEO_END: split_names(source, paths)}
    return _split_one_video(paths, spec, valid_spec, config), held_out


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
    source: Source,
    kind: MediaKind,
    paths: list[Path],
    spec: ClipSpec,
    config: TrainingConfig,
    recorded: Collection[str],
) -> tuple[list[Path], list[Path]]:
    """Training and held-out files, by the run's record if there is one.

    A usable file is among the latter: a validation set of broken files only would end the run at
    its first validation, possibly after hours.
    """
    fraction, seed = config.valid_frac, config.random_split_seed
    train, valid = split_media(source, kind, paths, fraction, seed, recorded)
    if not train:
        raise ValueError(
            f"the run in {config.results_folder} holds out all {len(valid)} {kind}s of {source}: "
            "add some to train on, or start a new run in another folder"
        )
    if recorded and {*valid} != {*split_media(source, kind, paths, fraction, seed)[1]}:
        warnings.warn(
            f"held out are the {len(valid)} {kind}s that the run held out before; with the files "
            f"in {source}, valid_frac {fraction} and random_split_seed {seed} it would be others",
            stacklevel=4,
        )
    if any(_usable(kind, path, spec, config) for path in valid):
        return train, valid
    for path in train:
        if len(train) > 1 and _usable(kind, path, spec, config):
            return [p for p in train if p != path], [*valid, path]
    return train, valid  # the dataset raises the error


def _usable(kind: MediaKind, path: Path, spec: ClipSpec, config: TrainingConfig) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the dataset that uses the file will warn
        try:
            _ = _open(kind, [path], spec, config, train=False)[0]
        except ValueError:
            return False
    return True


def _split_one_video(
    paths: list[Path], spec: ClipSpec, valid_spec: ClipSpec, config: TrainingConfig
) -> tuple[Clips, Clips]:
    """Splits one video: nine tenths for training, the rest held out."""
    warnings.warn(
        f"{paths[0]} is the only video: its last tenth is held out for validation", stacklevel=4
    )
    train = _open("video", paths, spec, config, frame_range=(0.0, 0.9))
    held_out = replace(valid_spec, pad_short=True)
    return train, _open("video", paths, held_out, config, train=False, frame_range=(0.9, 1.0))


def _split_items(dataset: Clips, config: TrainingConfig) -> tuple[Clips, Clips]:
    number = num_clips(dataset)
    if number is None:
        raise ValueError("a dataset without a length cannot be split: give a valid_dataset")
    if number < 2:
        raise ValueError(f"the dataset has {number} item(s): give two or more, or a valid_dataset")
    train, valid = split_files(range(number), config.valid_frac, config.random_split_seed)
    return Subset(dataset, train), Subset(dataset, valid)


def training_batches(
    dataset: Clips,
    config: TrainingConfig,
    accelerator: Accelerator,
    position: int,
    batch_size: int | None = None,
) -> Iterator[Tensor]:
    """Infinite batches `b c t h w` from batch number `position` on.

    They are on the device. The first one is checked: values outside [-1, 1], or all of them in
    [0, 1], raise `ValueError` before the first step.
    """
    share = dict(rank=accelerator.process_index, world_size=accelerator.num_processes)
    batch_size = batch_size or config.batch_size
    if isinstance(dataset, StreamedClips):
        batches = dataset.batches(batch_size, position, **share)
    else:
        batches = InfiniteBatches(
            dataset,
            batch_size,
            position=position,
            num_workers=config.num_workers,
            seed=config.seed,
            pin_memory=accelerator.device.type == "cuda",
            collate_fn=None if isinstance(dataset, MediaDataset) else stack_clips,
            **share,
        )
    for number, batch in enumerate(batches):
        if number == 0:
            _check_values(batch, dataset)
        batch = batch[:, :, None] if batch.ndim == 4 else batch
        yield batch.to(accelerator.device, non_blocking=True)


def _check_values(batch: Tensor, dataset: Clips) -> None:
    check_range(batch)
    if not getattr(dataset, "always_in_range", False) and (mistake := range_warning(batch)):
        raise ValueError(mistake)


def check_clips(clips: Clips | None, name: str, model: VideoTokenizer | SuperResolution) -> None:
    """Tries the first items of a data set; errors name it."""
    if clips is None or getattr(clips, "always_in_range", False):
        return
    try:
        first = list(share_of_clips(clips, NUM_TRIED))
        if not first:
            raise ValueError("it is empty")
        model.prepare(first[0][None], check_values=False)
        _check_values(torch.cat([clip.flatten() for clip in first]), clips)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} data cannot be used: {error}") from error


def mixed_batches(
    clips: Clips, images: Clips | None, config: TrainingConfig, accelerator: Accelerator, start: int
) -> Iterator[Video]:
    """Infinite batches of clips and images, from batch number `start` on.

    The kind of a batch depends on its number alone: a resumed run gets the same batches, and no
    process waits for another one with longer clips.
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
    frames = config.tubelet[0] if config.tubelet else config.num_frames
    return config.image_batch_size or config.batch_size * frames


def num_image_batches(num_batches: int, image_frac: float) -> int:
    """Number of image batches among the first `num_batches`, evenly spread."""
    return int(num_batches * Fraction(image_frac).limit_denominator(1000))

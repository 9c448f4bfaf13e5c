"""Reproducible selection of files and clips to evaluate."""

import hashlib
import json
import os
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from magvit2_pytorch.atomic import AnyPath, as_path, normalized
from magvit2_pytorch.data.clips import ClipSpec, choose_clip, choose_window, crop, resolve_range
from magvit2_pytorch.data.split import ADDED_IMAGES, HeldOut, split_media, split_names
from magvit2_pytorch.evaluation.clip_choice import ClipChoice
from magvit2_pytorch.media.sources import SUFFIXES, Source, find_media
from magvit2_pytorch.media.unusable import UnusableMedia, decoding_errors
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.pipelines.media_file import media_kind, open_media, resized_size
from magvit2_pytorch.runtime import keyed_seed
from magvit2_pytorch.types import Frames, MediaKind


class EvaluatedFile(NamedTuple):
    """A file and its name: its path relative to the folder."""

    path: Path
    name: str


class Clip(NamedTuple):
    """Frames of a clip, and their position in a file."""

    name: str
    """Name of the file."""
    kind: MediaKind
    number: int
    """Index of the clip within its file."""
    num_clips: int
    """Number of clips of the file."""
    start_frame: int
    fps: float | None
    """Frame rate of the clip; None for an image."""
    frames: Frames


class SkippedFile(NamedTuple):
    """A file that cannot be used, and the reason."""

    name: str
    reason: str


def find_files(
    source: Source, choice: ClipChoice, held_out: HeldOut | None = None
) -> list[EvaluatedFile]:
    """Files to evaluate, sorted by name, or in random order for `max_clips`.

    For a split, `held_out` is the record of the training run. Raises as `find_media` does, and
    `ValueError` if a split is requested and there are fewer than two files of a kind.
    """
    by_kind: dict[MediaKind, list[Path]] = {}
    for kind in SUFFIXES:
        with suppress(ValueError):  # a folder with files of the other kind only
            by_kind[kind] = find_media(source, kind, beside=SUFFIXES)
    if not by_kind:
        find_media(source, "video")  # raises an error that says what the folder contains
    held_out, paths = held_out or {}, []
    for kind, files in by_kind.items():
        if choice.split != "all":
            records = (kind, ADDED_IMAGES) if kind == "image" else (kind,)
            recorded = {name for record in records for name in held_out.get(record, ())}
            fraction, seed = choice.valid_frac, choice.random_split_seed
            train, valid = split_media(source, kind, files, fraction, seed, recorded)
            files = train if choice.split == "train" else valid
        paths += files
    if not paths:
        raise ValueError(f"the training run holds out all files of {source}: there are no others")
    is_folder = isinstance(source, AnyPath) and as_path(source).is_dir()
    root = as_path(source) if is_folder else os.path.commonpath([path.parent for path in paths])
    files = [EvaluatedFile(p, normalized(p.relative_to(root).as_posix())) for p in paths]
    if choice.max_clips is None:
        return sorted(files, key=lambda file: file.name)
    # Their names as a split knows them, which other files of a list do not change.
    draws = [keyed_seed("draw", choice.seed, name) for name in split_names(source, paths)]
    return [file for _, file in sorted(zip(draws, files, strict=True))]


def files_digest(files: Sequence[EvaluatedFile], with_times: bool = False) -> str:
    """SHA-256 of file names and sizes, and `with_times` of modification times."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        facts: list[str | int] = [file.name]
        with suppress(OSError):  # a list may name missing files
            stat = os.stat(file.path)
            facts += [stat.st_size, stat.st_mtime_ns] if with_times else [stat.st_size]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def iter_clips(
    files: Sequence[EvaluatedFile], choice: ClipChoice, channels: int, first_clip: int = 0
) -> Generator[Clip | SkippedFile, None, None]:
    """Yields all clips of the files from `first_clip` of the first on."""
    for file in files:
        try:
            if media_kind(file.path) == "video":
                yield from _clips_of_video(file, choice, channels, first_clip)
            elif not first_clip:
                image = open_media(file.path, channels, choice.size)
                frames = _crop(torch.stack(list(image.frames)), choice)
                yield Clip(file.name, "image", 0, 1, 0, None, frames)
        except UnusableMedia as error:
            yield SkippedFile(file.name, error.reason)
        first_clip = 0


def _clips_of_video(
    file: EvaluatedFile, choice: ClipChoice, channels: int, first_clip: int
) -> Generator[Clip, None, None]:
    video = VideoFile(file.path, channels)
    size = resized_size(file.path, video.height, video.width, choice.size)
    spec = ClipSpec(num_frames=choice.num_frames, frame_stride=choice.frame_stride)
    number = first_clip
    while True:
        start, stop = resolve_range(video.num_frames, choice.frame_range)
        # Clips do not overlap.
        num_clips = min(choice.clips_per_video, max((stop - start) // choice.span, 1))
        if number >= num_clips:
            return
        numbers = choose_clip(file.path, video, spec, choice.frame_range, number, num_clips)
        frames = video.try_read(numbers, size)
        if frames is None:  # damaged: decode it to find the frames that exist
            with decoding_errors(file.path):
                video = video.fallback
            continue
        fps = video.fps / choice.frame_stride
        frames = _crop(frames, choice)
        yield Clip(file.name, "video", number, num_clips, numbers[0], fps, frames)
        number += 1


def _crop(frames: Frames, choice: ClipChoice) -> UInt8[Tensor, "t y x c"]:
    if not choice.crop:
        return frames
    spec = ClipSpec(image_size=choice.size)
    window = choose_window(*frames.shape[1:3], spec, None)
    # A view would keep the whole frames in memory.
    return crop(frames, window, spec.size).clone()

"""Reproducible selection of files and clips to evaluate."""

import hashlib
import json
import os
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from magvit2_pytorch.data.clips import (
    FrameRange,
    Window,
    check_frame_range,
    check_proportions,
    crop,
    resolve_range,
)
from magvit2_pytorch.media.images import read_image
from magvit2_pytorch.media.sources import SUFFIXES, Source, find_media, split_files
from magvit2_pytorch.media.unusable import UnusableMedia, decoding_errors
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.pipelines.media_file import frame_size, media_kind
from magvit2_pytorch.runtime import keyed_seed
from magvit2_pytorch.types import Frames, MediaKind

Split = Literal["all", "train", "valid"]


@dataclass(frozen=True, kw_only=True)
class ClipChoice:
    """Options for selecting clips; an image is a one-frame clip."""

    num_frames: int = 17
    """Frames per video clip; shorter videos are skipped and named."""

    frame_stride: int = 1
    """Take every n-th frame."""

    clips_per_video: int = 1
    """Maximum number of clips per video, spread evenly over it; fewer if they would overlap. A
    single clip is taken from the middle."""

    max_clips: int | None = None
    """Maximum number of clips in all, from files drawn at random with `seed`; None for all."""

    size: int | None = None
    """Pixels on the short side; None for the file's own size."""

    crop: bool = False
    """Crop the central square, `size` x `size`."""

    frame_range: FrameRange | None = None
    """Part of each video to take clips from: frame numbers (negative ones count from the end) or
    fractions."""

    split: Split = "all"
    """All files, or one side of the split that training makes of the same folder."""

    valid_frac: float = 0.05
    """Fraction of the files that training holds out."""

    random_split_seed: int = 42
    """Seed of the split."""

    seed: int = 0
    """Seed of the files drawn for `max_clips` and of the bootstrap intervals."""

    def __post_init__(self):
        for name in ("num_frames", "frame_stride", "clips_per_video", "max_clips", "size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: must be at least 1")
        if self.crop and self.size is None:
            raise ValueError("crop cuts out a square of `size` pixels: give a size")
        if self.split not in ("all", "train", "valid"):
            raise ValueError(f"split is {self.split!r}: use 'all', 'train' or 'valid'")
        check_frame_range(self.frame_range)

    @property
    def span(self) -> int:
        """Frames of the video from a clip's first to its last."""
        return (self.num_frames - 1) * self.frame_stride + 1


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


def find_files(source: Source, choice: ClipChoice) -> list[EvaluatedFile]:
    """Files to evaluate, sorted by name, or in random order for `max_clips`.

    The order does not depend on the order on disk. Raises as `find_media` does, and `ValueError`
    if a split is requested and there are fewer than two files of a kind.
    """
    by_kind: list[list[Path]] = []
    for kind in SUFFIXES:
        with suppress(ValueError):  # a folder with files of the other kind only
            by_kind.append(find_media(source, kind, beside=SUFFIXES))
    if not by_kind:
        find_media(source, "video")  # raises an error that says what the folder contains
    paths = [path for files in by_kind for path in _split_side(files, choice)]
    root = _root(source, paths)
    files = [EvaluatedFile(path, path.relative_to(root).as_posix()) for path in paths]
    if choice.max_clips is None:
        return sorted(files, key=lambda file: file.name)
    return sorted(files, key=lambda file: keyed_seed("draw", choice.seed, file.name))


def files_digest(files: Sequence[EvaluatedFile], with_times: bool = False) -> str:
    """SHA-256 of file names and sizes, and `with_times` of modification times.

    Detects other data without reading file contents.
    """
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
    """Yields all clips of the files, one in memory at a time.

    A file that cannot be used gives a `SkippedFile`. `first_clip` skips the clips before it in the
    first file. A file can fail after some of its clips were yielded.
    """
    for file in files:
        try:
            if media_kind(file.path) == "image":
                yield from _clips_of_image(file, choice, channels, first_clip)
            else:
                yield from _clips_of_video(file, choice, channels, first_clip)
        except UnusableMedia as error:
            yield SkippedFile(file.name, error.reason)
        first_clip = 0


def _clips_of_image(
    file: EvaluatedFile, choice: ClipChoice, channels: int, first_clip: int
) -> Generator[Clip, None, None]:
    if first_clip:
        return
    picture = read_image(file.path, channels)
    size = _target_size(file.path, *picture.shape[:2], choice)
    if size != tuple(picture.shape[:2]):
        picture = read_image(file.path, channels, size)
    yield Clip(file.name, "image", 0, 1, 0, None, _crop(picture[None], choice))


def _clips_of_video(
    file: EvaluatedFile, choice: ClipChoice, channels: int, first_clip: int
) -> Generator[Clip, None, None]:
    video = VideoFile(file.path, channels)
    size = _target_size(file.path, video.height, video.width, choice)
    number = first_clip
    while True:
        starts = _starts(file.path, video.num_frames, choice)
        if number >= len(starts):
            return
        frames = video.try_read(_frame_numbers(starts[number], choice), size)
        if frames is None:  # damaged: decode it to find the frames that exist
            with decoding_errors(file.path):
                video = video.fallback
            continue
        fps = video.fps / choice.frame_stride
        position = (number, len(starts), starts[number])
        yield Clip(file.name, "video", *position, fps, _crop(frames, choice))
        number += 1


def _starts(path: Path, num_frames: int, choice: ClipChoice) -> list[int]:
    """First frames of the clips of a video."""
    start, stop = resolve_range(num_frames, choice.frame_range)
    spare = stop - start - choice.span
    if spare < 0:
        reason = f"too short: {max(stop - start, 0)} frames, but a clip needs {choice.span}"
        raise UnusableMedia(path, reason)
    count = min(choice.clips_per_video, (stop - start) // choice.span)
    if count == 1:
        return [start + spare // 2]
    return [start + i * spare // (count - 1) for i in range(count)]


def _frame_numbers(start: int, choice: ClipChoice) -> list[int]:
    return list(range(start, start + choice.span, choice.frame_stride))


def _target_size(path: Path, height: int, width: int, choice: ClipChoice) -> tuple[int, int]:
    if choice.size is not None:
        check_proportions(path, height, width, (choice.size, choice.size))
    return frame_size(height, width, choice.size)


def _crop(frames: Frames, choice: ClipChoice) -> UInt8[Tensor, "t y x c"]:
    if not choice.crop:
        return frames
    height, width = frames.shape[1:3]
    corner = ((height - choice.size) // 2, (width - choice.size) // 2)
    square = (choice.size, choice.size)
    # A view would keep the whole frames in memory.
    return crop(frames, Window((height, width), *corner, flip=False), square).clone()


def _split_side(paths: list[Path], choice: ClipChoice) -> list[Path]:
    if choice.split == "all":
        return paths
    train, valid = split_files(paths, choice.valid_frac, choice.random_split_seed)
    return train if choice.split == "train" else valid


def _root(source: Source, paths: Sequence[Path]) -> Path:
    """The folder that file names are relative to."""
    if isinstance(source, str | os.PathLike) and Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    return Path(os.path.commonpath([path.parent for path in paths]))

"""Which clips of which files are evaluated: the same ones, in the same order, every time."""

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

from magvit2_pytorch.data import UnusableMedia, VideoFile, find_media, read_image, split_files
from magvit2_pytorch.data.clips import (
    FrameRange,
    Window,
    check_frame_range,
    check_proportions,
    crop,
    resolve_range,
)
from magvit2_pytorch.data.sources import SUFFIXES, Source
from magvit2_pytorch.data.unusable import blame
from magvit2_pytorch.evaluation.media import MediaKind, media_kind
from magvit2_pytorch.evaluation.preprocess import frame_size
from magvit2_pytorch.seeds import keyed_seed
from magvit2_pytorch.types import Frames

Split = Literal["all", "train", "valid"]


@dataclass(frozen=True, kw_only=True)
class ClipChoice:
    """What is taken from a folder. Images are clips of one frame."""

    num_frames: int = 17
    """Frames to a clip of a video; shorter videos are passed over and named."""

    frame_stride: int = 1
    """Every how manyeth frame a clip takes."""

    clips_per_video: int = 1
    """At most so many, from the beginning to the end of each video; fewer where they would
    overlap. One lies in its middle."""

    max_clips: int | None = None
    """Stop at so many clips, of files drawn by `seed`; all if not given."""

    size: int | None = None
    """Pixels on the short side; the file's own size if not given."""

    crop: bool = False
    """Cut the square at the centre, `size` x `size`."""

    frame_range: FrameRange | None = None
    """The part of each video to take clips from: frame numbers (negative ones count from the end)
    or fractions."""

    split: Split = "all"
    """Which files: all, or one side of the division that training makes of the same folder."""

    valid_frac: float = 0.05
    """Of that division: the part of the files that is held out."""

    random_split_seed: int = 42
    """Of that division."""

    seed: int = 0
    """Draws files for `max_clips`, and resamples clips for intervals."""

    def __post_init__(self):
        for name in ("num_frames", "frame_stride", "clips_per_video", "max_clips", "size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it is at least 1")
        if self.crop and self.size is None:
            raise ValueError("crop cuts a square of `size` pixels: give a size")
        if self.split not in ("all", "train", "valid"):
            raise ValueError(f"split is {self.split!r}: use 'all', 'train' or 'valid'")
        check_frame_range(self.frame_range)

    @property
    def span(self) -> int:
        """Frames of the video from a clip's first to its last."""
        return (self.num_frames - 1) * self.frame_stride + 1


class EvaluatedFile(NamedTuple):
    """A file, and its name in the report: its place below the folder that all are in."""

    path: Path
    name: str


class Clip(NamedTuple):
    """A clip to come: frames are read when it is its turn."""

    name: str
    """Of the file."""
    kind: MediaKind
    number: int
    """Of the clip within its file."""
    num_clips: int
    """That the file has."""
    start_frame: int
    fps: float | None
    """Frames of the clip a second; None for an image."""
    frames: Frames


class SkippedFile(NamedTuple):
    """A file that cannot be used, and why."""

    name: str
    reason: str


def find_files(source: Source, choice: ClipChoice) -> list[EvaluatedFile]:
    """The files to evaluate, in the order in which their clips are taken: by name, or drawn.

    Whatever order they are found in, theirs is the same. Raises as `find_media` does, and
    `ValueError` where a split is asked for and there are fewer than two files of a kind.
    """
    found: list[list[Path]] = []
    for kind in SUFFIXES:
        with suppress(ValueError):  # a folder of the other kind alone
            found.append(find_media(source, kind))
    if not found:
        find_media(source, "videos")  # which says what is there instead
    paths = [path for of_a_kind in found for path in _one_side(of_a_kind, choice)]
    root = _root(source, paths)
    files = [EvaluatedFile(path, path.relative_to(root).as_posix()) for path in paths]
    if choice.max_clips is None:
        return sorted(files, key=lambda file: file.name)
    return sorted(files, key=lambda file: keyed_seed("draw", choice.seed, file.name))


def files_digest(files: Sequence[EvaluatedFile], with_times: bool = False) -> str:
    """SHA-256 over names and sizes, which tells other data; `with_times` also files written anew.

    Files are told apart by what their folder says of them, not by their contents.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        facts: list[str | int] = [file.name]
        with suppress(OSError):  # a list may name what is not there
            about = os.stat(file.path)
            facts += [about.st_size, about.st_mtime_ns] if with_times else [about.st_size]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def iter_clips(
    files: Sequence[EvaluatedFile], choice: ClipChoice, channels: int, first_clip: int = 0
) -> Generator[Clip | SkippedFile, None, None]:
    """All clips of the files, one in memory at a time, and in place of unusable files why.

    `first_clip` passes over the first ones of the first file. A file can fail after some of its
    clips were given.
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
    size = _resized(file.path, *picture.shape[:2], choice)
    if size != tuple(picture.shape[:2]):
        picture = read_image(file.path, channels, size)
    yield Clip(file.name, "image", 0, 1, 0, None, _cropped(picture[None], choice))


def _clips_of_video(
    file: EvaluatedFile, choice: ClipChoice, channels: int, first_clip: int
) -> Generator[Clip, None, None]:
    video = VideoFile(file.path, channels)
    size = _resized(file.path, video.height, video.width, choice)
    number = first_clip
    while True:
        starts = _starts(file.path, video.num_frames, choice)
        if number >= len(starts):
            return
        frames = video.try_read(_numbers(starts[number], choice), size)
        if frames is None:  # damaged: it is asked again by what can be decoded
            with blame(file.path):
                video = video.distrusting
            continue
        about = (number, len(starts), starts[number], video.fps / choice.frame_stride)
        yield Clip(file.name, "video", *about, _cropped(frames, choice))
        number += 1


def _starts(path: Path, num_frames: int, choice: ClipChoice) -> list[int]:
    """First frames of a video's clips."""
    start, stop = resolve_range(num_frames, choice.frame_range)
    spare = stop - start - choice.span
    if spare < 0:
        reason = f"too short: {max(stop - start, 0)} frames, and a clip needs {choice.span}"
        raise UnusableMedia(path, reason)
    count = min(choice.clips_per_video, (stop - start) // choice.span)
    if count == 1:
        return [start + spare // 2]
    return [start + i * spare // (count - 1) for i in range(count)]


def _numbers(start: int, choice: ClipChoice) -> list[int]:
    return list(range(start, start + choice.span, choice.frame_stride))


def _resized(path: Path, height: int, width: int, choice: ClipChoice) -> tuple[int, int]:
    if choice.size is not None:
        check_proportions(path, height, width, (choice.size, choice.size))
    return frame_size(height, width, choice.size)


def _cropped(frames: Frames, choice: ClipChoice) -> UInt8[Tensor, "t y x c"]:
    if not choice.crop:
        return frames
    height, width = frames.shape[1:3]
    corner = ((height - choice.size) // 2, (width - choice.size) // 2)
    square = (choice.size, choice.size)
    # Not a view, which would keep the whole frames.
    return crop(frames, Window((height, width), *corner, flip=False), square).clone()


def _one_side(paths: list[Path], choice: ClipChoice) -> list[Path]:
    if choice.split == "all":
        return paths
    train, valid = split_files(paths, choice.valid_frac, choice.random_split_seed)
    return train if choice.split == "train" else valid


def _root(source: Source, paths: Sequence[Path]) -> Path:
    """What names of files start from: the folder that was given, or that files have in common."""
    if isinstance(source, str | os.PathLike) and Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    return Path(os.path.commonpath([path.parent for path in paths]))

"""A video or image file as the pipelines read and write it."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from magvit2_pytorch.codes.views import View
from magvit2_pytorch.data.clips import check_proportions, covering_size
from magvit2_pytorch.media.frames import Display
from magvit2_pytorch.media.images import read_image, write_image
from magvit2_pytorch.media.sources import IMAGE_SUFFIXES, SUFFIXES
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.media.video_writer import WRITABLE, VideoWriter
from magvit2_pytorch.types import Frames, MediaKind


def frame_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Height and width for a short side; None keeps the size."""
    if short_side is None:
        return height, width
    if short_side < 1:
        raise ValueError(f"size is {short_side}: the short side must have at least 1 pixel")
    return covering_size(height, width, (short_side, short_side))


def resized_size(
    path: str | os.PathLike, height: int, width: int, short_side: int | None
) -> tuple[int, int]:
    """`frame_size` of a file; raises `UnusableMedia` on an extreme aspect ratio."""
    size = frame_size(height, width, short_side)
    if short_side is not None:
        check_proportions(path, height, width, (short_side, short_side))
    return size


WRITABLE_AS = {"video": WRITABLE, "image": IMAGE_SUFFIXES}
"""Suffixes of files that can be written."""
ALL_WRITABLE = WRITABLE + IMAGE_SUFFIXES
SUFFIX_OF = {"video": ".mp4", "image": ".png"}
"""Suffix of files written to a folder."""


def media_kind(path: str | os.PathLike) -> MediaKind:
    """Kind of file by its suffix; raises `UnusableMedia` if unknown."""
    suffix = Path(path).suffix.lower()
    for kind, suffixes in SUFFIXES.items():
        if suffix in suffixes:
            return kind
    known = ", ".join(s.lstrip(".") for suffixes in SUFFIXES.values() for s in suffixes)
    raise UnusableMedia(path, f"is neither a video nor an image by its suffix ({known})")


@dataclass(frozen=True)
class Media:
    """Frames `h w c`, uint8, and the properties of their file."""

    kind: MediaKind
    height: int
    width: int
    fps: float | None
    num_frames: int
    """According to the file; the actual number may differ."""
    frames: Generator[UInt8[Tensor, "h w c"], None, None]
    display: Display = field(default_factory=Display)
    durations: Sequence[float] | None = None
    """Seconds that each frame is shown; None at an even rate."""

    def seen_as(self, path: str | os.PathLike, view: View) -> "Media":
        """The frames of a view; `UnusableMedia` if none is left."""
        if not view.name:
            return self
        if view.shift >= self.num_frames:
            raise UnusableMedia(path, f"has {self.num_frames} frames: too few for {view.name}")

        def frames():
            with closing(self.frames):
                for frame in islice(self.frames, view.shift, None):
                    # Not torch.flip: in a background thread it would start more of them.
                    if view.flip:
                        frame = torch.from_numpy(np.ascontiguousarray(frame.numpy()[:, ::-1]))
                    yield frame

        num_frames = self.num_frames - view.shift
        durations = None if self.durations is None else self.durations[view.shift :]
        return replace(self, frames=frames(), num_frames=num_frames, durations=durations)


def open_media(
    path: str | os.PathLike,
    channels: int = 3,
    size: int | None = None,
    square_pixels: bool = True,
) -> Media:
    """Opens a file, resizing the short side to `size` pixels if given.

    Pixels of a video are made square unless `square_pixels` is false and no size is given.

    Frames are decoded lazily, in constant memory. Raises `UnusableMedia` on files that cannot be
    used.
    """
    if media_kind(path) == "image":
        image = read_image(path, channels)
        height, width = resized_size(path, *image.shape[:2], size)
        if (height, width) != tuple(image.shape[:2]):
            image = read_image(path, channels, (height, width))
        return Media("image", height, width, None, 1, (frame for frame in (image,)))
    file = VideoFile(path, channels, square_pixels=square_pixels or size is not None)
    height, width = resized_size(path, file.height, file.width, size)
    frames = file.frames((height, width))
    return Media(
        "video", height, width, file.fps, file.num_frames, frames, file.display, file.durations
    )


def chunks(
    frames: Generator[UInt8[Tensor, "h w c"], None, None],
    chunk_frames: int,
    time_factor: int,
    num_first: int = 1,
) -> Generator[Frames, None, None]:
    """Splits frames into chunks that fit the tokenizer's stride.

    The last chunk may be shorter. The length of a chunk is the largest multiple of `time_factor` up
    to `chunk_frames`, at least `time_factor`; the first has `num_first` frames more. Closing the
    generator closes the file.
    """
    length = max(chunk_frames // time_factor, 1) * time_factor
    with closing(frames):
        chunk = list(islice(frames, num_first + length))
        while chunk:
            # torch.stack in a background thread would start a second team of OpenMP threads.
            yield torch.from_numpy(np.stack(chunk))
            chunk = list(islice(frames, length))


def check_writable(path: str | os.PathLike, kind: MediaKind) -> None:
    """Raises `ValueError` unless files of this kind can have the suffix."""
    suffix = Path(path).suffix.lower()
    if suffix not in WRITABLE_AS[kind]:
        known = ", ".join(WRITABLE_AS[kind])
        name = "an image" if kind == "image" else "a video"
        raise ValueError(f"cannot write {name} to {path}: use one of {known}")


@contextmanager
def media_writer(
    path: str | os.PathLike,
    kind: MediaKind,
    fps: float | None,
    audio_from: str | os.PathLike | None = None,
    display: Display = Display(),
    durations: Sequence[float] | None = None,
) -> Iterator[Callable[[Frames], None]]:
    """Yields a function that writes the next chunk of frames.

    The file appears atomically. A video is written in constant memory and gets the sound of the
    file `audio_from`, the tags `display` and the times of `durations`, as with `VideoWriter`. An
    image is the first frame.
    """
    if kind == "image":
        yield lambda chunk: write_image(path, chunk[0])
        return
    options = dict(audio_from=audio_from, display=display, durations=durations)
    with VideoWriter(path, fps, **options) as writer:

        def write(chunk: Frames) -> None:
            for frame in chunk:
                writer.write(frame)

        yield write

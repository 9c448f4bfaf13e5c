"""A file as frames to come, whether it is a video or an image."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from magvit2_pytorch.data import UnusableMedia, VideoFile, VideoWriter, read_image, write_image
from magvit2_pytorch.data.clips import check_proportions
from magvit2_pytorch.data.sources import IMAGE_SUFFIXES, SUFFIXES
from magvit2_pytorch.data.video_writer import WRITABLE
from magvit2_pytorch.evaluation.preprocess import frame_size
from magvit2_pytorch.types import Frames, MediaKind

DEFAULT_CHUNK_FRAMES = 16

WRITABLE_AS = {"video": WRITABLE, "image": IMAGE_SUFFIXES}
"""Suffixes of the files that can be written."""
ALL_WRITABLE = WRITABLE + IMAGE_SUFFIXES
SUFFIX_OF = {"video": ".mp4", "image": ".png"}
"""What is written where the user names a folder only."""


def media_kind(path: str | os.PathLike) -> MediaKind:
    """What the name's suffix says. Raises `UnusableMedia` on one that is no medium's."""
    suffix = Path(path).suffix.lower()
    for kind, suffixes in SUFFIXES.items():
        if suffix in suffixes:
            return kind
    known = ", ".join(s.lstrip(".") for suffixes in SUFFIXES.values() for s in suffixes)
    raise UnusableMedia(path, f"is neither a video nor an image by its suffix ({known})")


@dataclass(frozen=True)
class Media:
    """Frames `h w c`, bytes, of one size, and what a file of them needs besides."""

    kind: MediaKind
    height: int
    width: int
    fps: float | None
    num_frames: int
    """As the file promises; the frames that come may be fewer, or more."""
    frames: Generator[UInt8[Tensor, "h w c"], None, None]


def open_media(path: str | os.PathLike, channels: int = 3, size: int | None = None) -> Media:
    """Opens a file, resized so that its short side has `size` pixels, or as large as it is.

    Frames are decoded as they are asked for, in constant memory. Raises `UnusableMedia` on files
    that cannot be used.
    """
    if media_kind(path) == "image":
        image = read_image(path, channels)
        height, width = _resized(path, *image.shape[:2], size)
        if (height, width) != tuple(image.shape[:2]):
            image = read_image(path, channels, (height, width))
        return Media("image", height, width, None, 1, (frame for frame in (image,)))
    file = VideoFile(path, channels)
    height, width = _resized(path, file.height, file.width, size)
    return Media("video", height, width, file.fps, file.num_frames, file.frames((height, width)))


def _resized(path: str | os.PathLike, height: int, width: int, size: int | None) -> tuple[int, int]:
    if size is not None and size > 0:
        check_proportions(path, height, width, (size, size))
    return frame_size(height, width, size)


def chunks(
    frames: Generator[UInt8[Tensor, "h w c"], None, None], chunk_frames: int, time_factor: int
) -> Generator[Frames, None, None]:
    """Frames in runs that fit a tokenizer's strides, the last one as long as it happens to be.

    A run has the largest multiple of `time_factor` up to `chunk_frames`, at least one; the first
    has one frame more. Closing it closes the file that the frames come from.
    """
    if chunk_frames < 1:
        raise ValueError(f"chunk_frames is {chunk_frames}: a chunk holds at least one frame")
    length = max(chunk_frames // time_factor, 1) * time_factor
    with closing(frames):
        run = list(islice(frames, 1 + length))
        while run:
            # In a thread of its own, torch would stack with a second team of OpenMP threads.
            yield torch.from_numpy(np.stack(run))
            run = list(islice(frames, length))


def check_writable(path: str | os.PathLike, kind: MediaKind) -> None:
    """Raises `ValueError` unless the name's suffix says a format that this kind can have."""
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
) -> Iterator[Callable[[Frames], None]]:
    """Gives a function that writes the next run of frames; the file appears whole or not.

    A video grows in constant memory and gets the sound of the file `audio_from`, as `VideoWriter`
    does it. An image is the first frame.
    """
    if kind == "image":
        yield lambda run: write_image(path, run[0])
        return
    with VideoWriter(path, fps, audio_from=audio_from) as writer:

        def write(run: Frames) -> None:
            for frame in run:
                writer.write(frame)

        yield write

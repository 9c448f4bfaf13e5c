"""Video files as sequences of frames: exact random access and streaming."""

import bisect
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from magvit2_pytorch.atomic import AnyPath, as_path
from magvit2_pytorch.config import check_at_least_one
from magvit2_pytorch.media.container import decode, decode_all, demux, first_frame, open_video
from magvit2_pytorch.media.frame_index import FrameIndex, build_index
from magvit2_pytorch.media.frames import Crop, Display, FrameToArray, check_channels
from magvit2_pytorch.media.unusable import UnusableMedia, decoding_errors
from magvit2_pytorch.types import Frames

# Decoding on costs less than a new seek up to about this many frames (h264, 720p).
_SEEK_GAP = 16


def decode_at(
    container: Any, stream: Any, index: FrameIndex, wanted: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    """Yields (number, frame) for the wanted numbers that can be decoded."""
    if index.pts is not None and len(index.keyframes):
        for run in _runs(wanted, index):
            yield from _decode_run(container, stream, index, run)
    elif wanted:
        keep = set(wanted)
        for i, frame in enumerate(decode(container, stream)):
            if i in keep:
                yield i, frame
            if i == wanted[-1]:
                return


def _runs(wanted: Sequence[int], index: FrameIndex) -> Iterator[list[int]]:
    """Splits the wanted numbers where seeking to a keyframe saves decoding."""
    run = []
    for i in wanted:
        if run and i - run[-1] >= _SEEK_GAP and _keyframe(index, i) > _keyframe(index, run[-1]):
            yield run
            run = []
        run.append(i)
    if run:
        yield run


def _keyframe(index: FrameIndex, i: int) -> int:
    """Number of the last keyframe shown no later than the frame.

    In an open group of pictures, a frame shown before a keyframe can follow it in the file
    and then needs the previous keyframe, which is the one that this gives.
    """
    return max(bisect.bisect_right(index.keyframes, index.pts[i]) - 1, 0)


def _decode_run(
    container: Any, stream: Any, index: FrameIndex, run: list[int]
) -> Iterator[tuple[int, Any]]:
    missing = list(run)
    keyframe, step = _keyframe(index, run[0]), 1
    # If the index had to be built by decoding, a packet does not say which frame it gives.
    skips = not index.decoded
    while True:
        wanted = {int(index.pts[i]) for i in missing} if skips else None
        for frame in _decode_from(container, stream, int(index.keyframes[keyframe]), wanted):
            if frame.pts is None or frame.pts > index.pts[missing[0]]:
                break
            if frame.pts == index.pts[missing[0]]:
                yield missing.pop(0), frame
                if not missing:
                    return
        if skips:  # a decoder that guesses the order of frames may need all of them
            skips = False
            continue
        if keyframe == 0:
            return
        # Some packets are marked as keyframes but are not, and decoders drop the frames after them.
        keyframe, step = max(keyframe - step, 0), step * 2


def _decode_from(container: Any, stream: Any, tick: int, wanted: set[int] | None) -> Iterator[Any]:
    """Frames from the keyframe at or before `tick`, if seeking finds it.

    Frames that no other frame refers to are decoded only if wanted (by their ticks; None wants
    all). This saves half of the work on the way to a frame.
    """
    import av

    try:
        container.seek(tick, stream=stream)
    except av.error.FFmpegError:
        return
    packets = demux(container, stream)
    for packet in packets:
        if packet.is_keyframe:
            if packet.pts is not None and packet.pts <= tick:
                packets = _skip_unwanted(stream.codec_context, chain((packet,), packets), wanted)
                yield from decode(container, stream, packets)
            return


def _skip_unwanted(context: Any, packets: Iterator[Any], wanted: set[int] | None) -> Iterator[Any]:
    """Yields the packets; before each, tells the decoder whether to skip it."""
    for packet in packets:
        context.skip_frame = "DEFAULT" if wanted is None or packet.pts in wanted else "NONREF"
        yield packet


class VideoFile:
    """Frames of a video file by number, bytes `t h w c`.

    `read` gives the same bytes as decoding from the start, for every codec. `read` and `frames`
    use constant memory. Frames are cropped, turned and mirrored as the metadata says. Opacity is
    composed over black (4 channels keep it). Pixels become square: a video with others is enlarged
    along one side, unless `square_pixels` is false. The file never stays open between calls, so the
    object can be pickled and forked. Every method raises `UnusableMedia` (a `ValueError`) if the
    file is missing or no frame of it can be decoded.
    """

    def __init__(
        self,
        path: AnyPath,
        channels: int = 3,
        num_threads: int | None = None,
        square_pixels: bool = True,
    ):
        check_channels(channels)
        self.path = str(as_path(path))
        self.channels, self.square_pixels = channels, square_pixels
        self.num_threads = num_threads
        """Number of decoder threads; by default this process's share of the cores, at most 8."""

    @cached_property
    def index(self) -> FrameIndex:
        with decoding_errors(self.path):
            return build_index(self.path, self._num_threads())

    @cached_property
    def fallback(self) -> "VideoFile":
        """This file with an index of the frames that can be decoded."""
        # With several threads, the decoded pixels of damaged frames depend on timing.
        file = VideoFile(self.path, self.channels, 1, self.square_pixels)
        if not self.index.decoded:
            with decoding_errors(self.path):
                file.index = build_index(self.path, 1, by_decoding=True)
        elif len(self.index.keyframes):
            file.index = replace(self.index, keyframes=np.array([], np.int64))
        else:
            raise UnusableMedia(self.path, "does not give the same frames twice")
        return file

    @cached_property
    def _shape(self) -> tuple[tuple[int, int], Display, Crop]:
        # Headers can be wrong about the size: decode a frame.
        with decoding_errors(self.path):
            first = first_frame(self.path)
            if first is None:
                raise UnusableMedia(self.path, "holds no frame that can be decoded")
            return *first.shown(self.square_pixels), first.crop

    @property
    def _size(self) -> tuple[int, int]:
        return self._shape[0]

    @property
    def display(self) -> Display:
        """Shape of the pixels and tags of the colours of read frames."""
        return self._shape[1]

    @property
    def num_frames(self) -> int:
        return self.index.num_frames

    @property
    def fps(self) -> float:
        """Mean frame rate in frames per second."""
        return self.index.fps

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float(self.index.times[-1]) + self.index.last_s

    @property
    def times(self) -> Float[np.ndarray, " t"]:
        """Presentation time of each frame, in seconds from the first."""
        return self.index.times

    @property
    def durations(self) -> list[float] | None:
        """Seconds that each frame is shown; None at an even rate."""
        return self.index.durations

    @property
    def height(self) -> int:
        return self._size[0]

    @property
    def width(self) -> int:
        return self._size[1]

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[UInt8[Tensor, "h w c"]]:
        return self.frames()

    def __repr__(self) -> str:
        return f"VideoFile({self.path!r}, channels={self.channels})"

    def read(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> Frames:
        """Reads the frames of these numbers.

        Numbers must not decrease; repeats are allowed. `size` (height, width) resizes inside the
        decoder, antialiased; without it frames have the size of the first. Raises `IndexError` on
        numbers outside the file.
        """
        file = self
        while (frames := file.try_read(indices, size)) is None:
            file = file.fallback
        self.index, self.num_threads = file.index, file.num_threads
        return frames

    def try_read(
        self, indices: Sequence[int], size: tuple[int, int] | None = None
    ) -> Frames | None:
        """As `read`, but None if frames of the index cannot be decoded.

        These are damaged; `fallback` indexes the frames that can be decoded.
        """
        indices = [int(i) for i in indices]
        if any(a > b for a, b in pairwise(indices)):
            raise ValueError(f"frame numbers must not decrease: {indices}")
        num_frames = self.num_frames
        if indices and not 0 <= indices[0] <= indices[-1] < num_frames:
            raise IndexError(
                f"{self.path} has {num_frames} frames, 0 to {num_frames - 1}: "
                f"no frames {indices[0]} to {indices[-1]}"
            )
        size = size or self._size
        with decoding_errors(self.path):
            decoded = self._decode(set(indices), size, self._num_threads())
            if len(decoded) < len(set(indices)):
                decoded = self._decode(set(indices), size, num_threads=1)
        if len(decoded) < len(set(indices)):
            return None
        frames = np.empty((len(indices), *size, self.channels), np.uint8)
        for row, i in enumerate(indices):
            frames[row] = decoded[i]
        return torch.from_numpy(frames)

    def frames(self, size: tuple[int, int] | None = None) -> Iterator[UInt8[Tensor, "h w c"]]:
        """Yields all frames in constant memory; `size` as in `read`."""
        with decoding_errors(self.path):
            to_array = FrameToArray(self.channels, size or self._size, self._shape[2])
            frame = None
            with closing(decode_all(self.path, self._num_threads())) as frames:
                for frame in frames:
                    yield torch.from_numpy(to_array(frame))
            if frame is None:
                raise UnusableMedia(self.path, "holds no frame that can be decoded")

    def chunks(self, num_frames: int, size: tuple[int, int] | None = None) -> Iterator[Frames]:
        """Yields all frames in chunks of `num_frames`; the last may be shorter."""
        check_at_least_one(num_frames=num_frames)
        frames = self.frames(size)
        for first in frames:
            yield torch.stack((first, *islice(frames, num_frames - 1)))

    def _num_threads(self) -> int:
        if self.num_threads is not None:
            return self.num_threads
        worker = torch.utils.data.get_worker_info()
        share = (os.cpu_count() or 1) // (worker.num_workers if worker else 1)
        return min(max(share, 1), 8)

    def _decode(
        self, wanted: set[int], size: tuple[int, int], num_threads: int
    ) -> dict[int, UInt8[np.ndarray, "h w c"]]:
        """Decodes the wanted frames, as far as possible."""
        if not wanted:
            return {}
        container, stream = open_video(self.path, num_threads)
        with container:
            to_array = FrameToArray(self.channels, size, self._shape[2])
            frames = decode_at(container, stream, self.index, sorted(wanted))
            return {i: to_array(frame) for i, frame in frames}

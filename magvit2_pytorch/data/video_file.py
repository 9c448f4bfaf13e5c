"""A video file as a sequence of frames: exact random access, and streaming."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import islice, pairwise

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from magvit2_pytorch.data.frame_array import FrameToArray
from magvit2_pytorch.data.frame_index import FrameIndex, build_index, decode_all, open_video
from magvit2_pytorch.data.pixels import check_channels
from magvit2_pytorch.data.seek import decode_at
from magvit2_pytorch.data.unusable import UnusableMedia, decoding_errors
from magvit2_pytorch.types import Frames


class VideoFile:
    """The frames of a video file, by number, as bytes `t h w c`.

    `read` gives the same bytes that decoding from the start gives, whatever the codec, and
    stays in constant memory; so does `frames`. Turned pictures (rotation metadata) come
    upright, opacity is resolved over black (or kept: 4 channels), pixels are taken as square.
    Opening is lazy, and nothing stays open between calls, so it pickles and forks.

    Every method raises `UnusableMedia` (a `ValueError`) with the name and the reason where
    the file is missing, empty, damaged beyond its first frame or holds no video.
    """

    def __init__(self, path: str | os.PathLike, channels: int = 3, num_threads: int | None = None):
        check_channels(channels)
        self.path = os.fspath(path)
        self.channels = channels
        self.num_threads = num_threads
        """Decoder threads; by default this process's share of the cores, eight at most."""

    @cached_property
    def index(self) -> FrameIndex:
        with decoding_errors(self.path):
            return build_index(self.path, self._num_threads())

    @cached_property
    def distrusting(self) -> "VideoFile":
        """The same file, numbered by what was seen decoded; from that, one that never seeks.

        It may have fewer frames. Raises `UnusableMedia` where distrust has come to its end.
        """
        # What several threads make of damaged frames depends on which is first.
        file = VideoFile(self.path, self.channels, num_threads=1)
        if not self.index.decoded:
            with decoding_errors(self.path):
                file.index = build_index(self.path, 1, by_decoding=True)
        elif len(self.index.keyframes):
            file.index = replace(self.index, keyframes=np.array([], np.int64))
        else:
            raise UnusableMedia(self.path, "does not give the same frames twice")
        return file

    @cached_property
    def _size(self) -> tuple[int, int]:
        # Headers also lie about sizes and know nothing of rotation: ask a frame.
        height, width, _ = next(self.frames()).shape
        return height, width

    @property
    def num_frames(self) -> int:
        return self.index.num_frames

    @property
    def fps(self) -> float:
        """Mean frames a second."""
        return self.index.fps

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float(self.index.times[-1]) + 1 / self.fps

    @property
    def times(self) -> Float[np.ndarray, " t"]:
        """When each frame is shown, seconds from the first."""
        return self.index.times

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
        """The frames of these numbers, in an order that never decreases; repeats are allowed.

        `size` (height, width) resizes inside the decoder, antialiased; without it frames have
        the size of the first. Raises `IndexError` on numbers outside the file.
        """
        file = self
        while (frames := file.try_read(indices, size)) is None:
            file = file.distrusting
        self.index, self.num_threads = file.index, file.num_threads
        return frames

    def try_read(
        self, indices: Sequence[int], size: tuple[int, int] | None = None
    ) -> Frames | None:
        """As `read`, but None where the index promised frames that do not come out.

        They are damaged then, and `distrusting` counts those that do come out.
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
            found = self._decode(set(indices), size, self._num_threads())
            if len(found) < len(set(indices)):
                found = self._decode(set(indices), size, num_threads=1)
        if len(found) < len(set(indices)):
            return None
        frames = np.empty((len(indices), *size, self.channels), np.uint8)
        for row, i in enumerate(indices):
            frames[row] = found[i]
        return torch.from_numpy(frames)

    def frames(self, size: tuple[int, int] | None = None) -> Iterator[UInt8[Tensor, "h w c"]]:
        """All frames from the first to the last, in constant memory; sizes as in `read`."""
        with decoding_errors(self.path):
            to_array = FrameToArray(self.channels, size)
            frame = None
            with closing(decode_all(self.path, self._num_threads())) as frames:
                for frame in frames:
                    yield torch.from_numpy(to_array(frame))
            if frame is None:
                raise UnusableMedia(self.path, "holds no frame that can be decoded")

    def chunks(self, num_frames: int, size: tuple[int, int] | None = None) -> Iterator[Frames]:
        """All frames in runs of `num_frames`, the last one shorter where they do not fit."""
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}: a chunk holds at least one frame")
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
        """The wanted frames as far as the file gives them."""
        if not wanted:
            return {}
        container, stream = open_video(self.path, num_threads)
        with container:
            to_array = FrameToArray(self.channels, size)
            frames = decode_at(container, stream, self.index, sorted(wanted))
            return {i: to_array(frame) for i, frame in frames}

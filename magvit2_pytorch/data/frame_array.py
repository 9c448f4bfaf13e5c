"""Conversion of decoded frames to bytes: size, rotation, colour, opacity."""

from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import UInt8

from magvit2_pytorch.data.pixels import as_channels


class FrameToArray:
    """Converts frames of one video to arrays of one size.

    `size` is the (height, width) of the upright result; by default that of the first frame, so
    that a stream that changes size midway stays one video. Resizing happens here, in the
    decoder's own format before it becomes RGB, a quarter of the cost of doing it after.
    Shrinking averages areas (no aliasing), growing is bicubic. Colour matrix and range are
    those that the frame is tagged with, Rec. 601 limited where it has no tag.
    """

    def __init__(self, channels: int, size: tuple[int, int] | None = None):
        from av.video.reformatter import VideoReformatter

        self.channels = channels
        self.size = size
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> UInt8[np.ndarray, "h w c"]:
        quarter_turns = round(getattr(frame, "rotation", 0) / 90) % 4
        lies = bool(quarter_turns % 2)
        if self.size is None:
            self.size = (frame.width, frame.height) if lies else (frame.height, frame.width)
        height, width = self.size[::-1] if lies else self.size
        pixels = "rgba" if _has_opacity(frame.format.name) else "rgb24"
        array = reformat(self._reformatter, frame, (height, width), pixels)
        # Rotation metadata counts counterclockwise, and so does rot90.
        return np.ascontiguousarray(as_channels(np.rot90(array, quarter_turns), self.channels))


def resize_array(
    array: UInt8[np.ndarray, "h w c"], size: tuple[int, int]
) -> UInt8[np.ndarray, "y x c"]:
    """Resizes decoded bytes in the same way as frames of videos."""
    if array.shape[:2] == tuple(size):
        return array
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter

    pixels = {1: "gray", 3: "rgb24", 4: "rgba"}[array.shape[-1]]
    plane = array[..., 0] if pixels == "gray" else array
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(plane), pixels)
    return reformat(VideoReformatter(), frame, size, pixels).reshape(*size, array.shape[-1])


def reformat(
    reformatter: Any, frame: Any, size: tuple[int, int], pixels: str
) -> UInt8[np.ndarray, "..."]:
    """Resizes and converts a frame: shrinking averages areas, enlarging is bicubic."""
    height, width = size
    shrinks = height <= frame.height and width <= frame.width
    to = dict(
        width=width,
        height=height,
        format=pixels,
        interpolation="AREA" if shrinks else "BICUBIC",
    )
    try:
        # Scaling threads beside decoder threads and workers only get in each other's way.
        return reformatter.reformat(frame, **to, threads=1).to_ndarray()
    except TypeError:  # before PyAV could be told
        return reformatter.reformat(frame, **to).to_ndarray()


@lru_cache(maxsize=64)
def _has_opacity(pixels: str) -> bool:
    from av import VideoFormat

    described = VideoFormat(pixels)
    return described.has_palette or any(part.is_alpha for part in described.components)

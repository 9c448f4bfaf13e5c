"""Conversion of decoded frames to bytes: size, rotation, colour, opacity."""

from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import UInt8

from magvit2_pytorch.data.pixels import as_channels

# Numbers of swscale's flags: PyAV 17.1 takes them and has no names for the last two.
BICUBIC, AREA = 0x4, 0x20
# Without accurate rounding (0x40000) grey 128 reads as 126, and without chroma interpolated to
# full width (0x2000) every two pixels have one colour; only odd widths switch the latter on.
ACCURATE = 0x40000 | 0x2000

# Values of FFmpeg's AVColorSpace that name no matrix for YCbCr: RGB, unspecified, reserved.
_NO_MATRIX = (0, 2, 3)


class FrameToArray:
    """Converts frames of one video to arrays of one size.

    `size` is the (height, width) of the upright result; by default that of the first frame, so
    that a stream that changes size midway stays one video. Resizing happens here, in the
    decoder's own format before it becomes RGB, a quarter of the cost of doing it after.
    Shrinking averages areas (no aliasing), growing is bicubic. Colour matrix and range are
    those that the frame is tagged with; without a tag the range is limited and the matrix
    goes by the size (`untagged_matrix`).
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
        pixels = _array_format(frame.format.name)
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
    shrinks = height < frame.height or width < frame.width
    untagged = frame.colorspace in _NO_MATRIX
    return reformatter.reformat(
        frame,
        width=width,
        height=height,
        format=pixels,
        # Has no effect on RGB and grey.
        src_colorspace=untagged_matrix(frame.height, frame.width) if untagged else None,
        interpolation=ACCURATE | (AREA if shrinks else BICUBIC),
        # Scaling threads beside decoder threads and workers only get in each other's way.
        threads=1,
    ).to_ndarray()


def untagged_matrix(height: int, width: int) -> str:
    """The YCbCr matrix of video that is not tagged, by PyAV's name.

    Rec. 709 from HD sizes on and Rec. 601 below: encoders leave out the tag and players go by
    the size. The limits are mpv's (`mp_csp_guess_colorspace`); SDL, and so ffplay, has the
    one on height. They compare the decoder's frame, before rotation and scaling.
    """
    return "ITU709" if width >= 1280 or height > 576 else "ITU601"


@lru_cache(maxsize=64)
def _array_format(pixels: str) -> str:
    """The format to convert a decoder's format to, of those that become an array."""
    from av import VideoFormat

    described = VideoFormat(pixels)
    if described.has_palette or any(part.is_alpha for part in described.components):
        return "rgba"
    # swscale computes planes with vector instructions and interleaved RGB without: `gbrp` takes
    # a third to a half of the time, and `to_ndarray` interleaves it. From RGB it is not exact.
    return "rgb24" if described.is_rgb else "gbrp"

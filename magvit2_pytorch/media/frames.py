"""Frames as bytes and floats: value range, channels, colours, resizing."""

from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from magvit2_pytorch.functional import NOT_FINITE

CHANNELS = (1, 3, 4)
"""Grey, RGB and RGBA."""

_TO_FLOAT = {3: "h w c -> c h w", 4: "t h w c -> c t h w", 5: "b t h w c -> b c t h w"}
_TO_BYTES = {3: "c h w -> h w c", 4: "c t h w -> t h w c", 5: "b c t h w -> b t h w c"}


def to_float(frames: UInt8[Tensor, "*frames h w c"]) -> Float[Tensor, "..."]:
    """Converts bytes, channels last, to float32 in [-1, 1], channels first.

    `h w c` becomes `c h w`, `t h w c` becomes `c t h w`, `b t h w c` becomes `b c t h w`.
    """
    if frames.ndim not in _TO_FLOAT:
        raise ValueError(f"frames have 3 to 5 axes (h w c last), not shape {tuple(frames.shape)}")
    video = rearrange(frames, _TO_FLOAT[frames.ndim])
    # One pass into contiguous memory; a division makes 255 exactly 1.
    return video.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_uint8(video: Float[Tensor, "*video h w"]) -> UInt8[Tensor, "..."]:
    """Converts floats in [-1, 1], channels first, to rounded bytes, channels last.

    The inverse of `to_float`. Values outside the range, as in reconstructions, are clamped; NaN
    becomes black. Raises `ValueError` if the floats look like bytes (none below 0, some above 2).
    """
    if video.ndim not in _TO_BYTES:
        raise ValueError(f"a video has 3 to 5 axes (c first), not shape {tuple(video.shape)}")
    video = video.detach().float()
    if video.numel() and float(video.amin()) >= 0 and float(video.amax()) > 2:
        raise ValueError(
            f"values from {float(video.amin()):g} to {float(video.amax()):g} look like bytes: "
            "a video is in [-1, 1]; pass uint8 frames, or to_float(frames)"
        )
    levels = torch.nan_to_num(video, nan=-1.0).clamp(-1, 1).add(1).mul(127.5).round()
    return rearrange(levels.to(torch.uint8), _TO_BYTES[video.ndim]).contiguous()


def check_range(video: Float[Tensor, "..."], tolerance: float = 1e-3) -> None:
    """Raises `ValueError` on values outside [-1, 1], up to a tolerance."""
    if not video.numel():
        raise ValueError(f"an empty video, shape {tuple(video.shape)}")
    low, high = (float(value) for value in video.detach().aminmax())
    if -1 - tolerance <= low and high <= 1 + tolerance:
        return
    if not np.isfinite(high - low):
        advice = f"it holds {NOT_FINITE}"
    elif low >= 0 and high > 2:
        advice = "these look like bytes: to_float(frames) takes uint8 `t h w c` to this range"
    else:
        advice = "clamp it, or scale it to this range"
    raise ValueError(f"a video is in [-1, 1], but this one goes from {low:g} to {high:g}: {advice}")


def as_channels(frame: UInt8[np.ndarray, "h w k"], channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Converts an RGB or RGBA picture to grey, RGB or RGBA.

    RGBA becomes RGB by composing over black, the lowest value, so that transparent pixels carry
    no light. Grey is Rec. 601 luma in Pillow's integer arithmetic. RGB becomes opaque RGBA.
    """
    if channels == 4:
        if frame.shape[-1] == 4:
            return frame
        return np.concatenate((frame, np.full_like(frame[..., :1], 255)), axis=-1)
    if frame.shape[-1] == 4:
        opacity = frame[..., 3:].astype(np.uint16)
        frame = ((frame[..., :3] * opacity + 127) // 255).astype(np.uint8)
    if channels == 3:
        return frame
    weights = np.array([19595, 38470, 7471], np.uint32)
    return ((frame @ weights + 0x8000) >> 16).astype(np.uint8)[..., None]


def check_channels(channels: int) -> None:
    """Raises `ValueError` unless the number of channels is 1, 3 or 4."""
    if channels not in CHANNELS:
        raise ValueError(f"{channels} channels: use 1 (grey), 3 (RGB) or 4 (RGB and opacity)")


# Numbers of swscale's flags: PyAV 17.1 takes them and has no names for the last two.
BICUBIC, AREA = 0x4, 0x20
# Without accurate rounding (0x40000) grey 128 reads as 126, and without chroma interpolated to
# full width (0x2000) every two pixels have one colour; only odd widths switch the latter on.
ACCURATE = 0x40000 | 0x2000

# Values of FFmpeg's AVColorSpace that name no matrix for YCbCr: RGB, unspecified, reserved.
_NO_MATRIX = (0, 2, 3)


class Display(NamedTuple):
    """Properties of displayed frames that a file may carry."""

    sample_aspect: Fraction = Fraction(1)
    """Width of a pixel relative to its height."""
    primaries: int = 1
    """Colour primaries by their number in ITU-T H.273; 1 is Rec. 709."""
    transfer: int = 1
    """Transfer characteristics by the same standard."""

    @property
    def hdr(self) -> str | None:
        """Name of the transfer characteristics of high dynamic range."""
        return {16: "PQ", 18: "HLG"}.get(self.transfer)


def square_size(height: int, width: int, aspect: Fraction) -> tuple[int, int]:
    """Size with square pixels, as players choose it: one side grows."""
    return round(height / min(aspect, 1)), round(width * max(aspect, 1))


class Crop(NamedTuple):
    """Hidden rows and columns at the sides of a stored frame."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


class Orientation(NamedTuple):
    """Exchange of rows and columns, then reversal of rows or columns."""

    transposed: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def of(cls, frame: Any) -> "Orientation":
        """Orientation that makes a decoded frame upright, nearest to its display matrix."""
        # The columns' place is a * column + c * row, and the rows' place b * column + d * row.
        a, b, c, d = _display_matrix(frame)
        if a * d == b * c:  # damaged: nothing would be seen
            return cls()
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, d < 0, a < 0)
        return cls(True, b < 0, c < 0)

    def apply(self, array: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "y x c"]:
        if self.transposed:
            array = array.swapaxes(0, 1)
        return array[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """The four entries of FFmpeg's display matrix that turn and mirror."""
    try:
        side_data = frame.side_data
    except ValueError:  # a kind that PyAV does not know, such as EXIF in JPEG, hides the others
        side_data = _known_side_data(frame)
    for data in side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
            return a, b, c, d
    return 1, 0, 0, 1


def _known_side_data(frame: Any) -> Any:
    """Side data without kinds of newer FFmpegs, of numbers above PyAV's."""
    from av.filter import Graph
    from av.sidedata.sidedata import Type

    graph = Graph()
    sizes = dict(width=frame.width, height=frame.height, format=frame.format.name)
    nodes = [graph.add_buffer(**sizes, time_base=frame.time_base or Fraction(1, 25))]
    for number in range(len(Type), len(Type) + 16):
        nodes.append(graph.add("sidedata", f"mode=delete:type={number}"))
    nodes.append(graph.add("buffersink"))
    for node, following in pairwise(nodes):
        node.link_to(following)
    graph.configure()
    nodes[0].push(frame)
    return nodes[-1].pull().side_data


class FrameToArray:
    """Converts frames of one video to arrays of one size.

    `size` is the (height, width) of the upright result; by default that of the first frame, so
    that a stream that changes size midway stays one video. `crop` goes first. Resizing happens in
    the decoder's own format before it becomes RGB, a quarter of the cost of doing it after. Colour
    matrix and range are those that the frame is tagged with; without a tag the range is limited
    and the matrix goes by the size (`untagged_matrix`).
    """

    def __init__(self, channels: int, size: tuple[int, int] | None = None, crop: Crop = Crop()):
        from av.video.reformatter import VideoReformatter

        self.channels, self.size, self.crop = channels, size, crop
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> UInt8[np.ndarray, "h w c"]:
        orientation = Orientation.of(frame)
        step = -1 if orientation.transposed else 1
        pixels = _array_format(frame.format.name)
        if any(self.crop):
            top, bottom, left, right = self.crop
            array = reformat(self._reformatter, frame, (frame.height, frame.width), pixels)
            array = array[top : frame.height - bottom, left : frame.width - right]
            array = resize_array(array, self.size[::step] if self.size else array.shape[:2])
        else:
            size = self.size[::step] if self.size else (frame.height, frame.width)
            array = reformat(self._reformatter, frame, size, pixels)
        array = np.ascontiguousarray(as_channels(orientation.apply(array), self.channels))
        self.size = array.shape[:2]
        return array


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

    Rec. 709 from HD sizes on and Rec. 601 below: encoders leave out the tag and players go by the
    size. The limits are mpv's (`mp_csp_guess_colorspace`), of frames before rotation and scaling.
    """
    return "ITU709" if width >= 1280 or height > 576 else "ITU601"


@lru_cache(maxsize=64)
def _array_format(pixels: str) -> str:
    """Format that becomes an array, for a decoder's format."""
    from av import VideoFormat

    described = VideoFormat(pixels)
    if described.has_palette or any(part.is_alpha for part in described.components):
        return "rgba"
    # swscale computes planes with vector instructions and interleaved RGB without: `gbrp` takes
    # a third to a half of the time, and `to_ndarray` interleaves it. From RGB it is not exact.
    return "rgb24" if described.is_rgb else "gbrp"

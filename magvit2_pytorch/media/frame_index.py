"""Index of a video file's frames and their times, mostly without decoding.

Headers can be wrong about counts and rates, so frames are counted. In most files each packet is
one frame, and reading the packets is enough (a millisecond per hundred frames). Where that is
not certain (see the lists below) or proved wrong, the frames are decoded once.
"""

import os
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from magvit2_pytorch.media.container import as_fraction, decode_all, demux, has_format, open_video
from magvit2_pytorch.media.unusable import UnusableMedia

# Containers that seek to a keyframe by its exact time. MPEG program and transport streams guess
# a byte position and times after it; a frame of a gif is drawn over the previous ones.
_SEEKABLE = ("mov", "mp4", "matroska", "webm", "avi")

# Codecs in which each packet is one frame. Not VP8 (some packets are never shown), MPEG-4 part 2
# (packets that repeat a frame or hold two) and MPEG-2 (fields come in pairs).
_ONE_FRAME_PER_PACKET = (
    "gif", "mjpeg", "png", "apng", "ffv1", "prores", "dnxhd", "huffyuv", "ffvhuff", "rawvideo",
)  # fmt: skip

# The same for codecs that reorder frames, in containers that store presentation times. An avi
# has none, and the times that FFmpeg makes up are not in the order of the decoded frames.
_REORDERED = ("h264", "hevc", "vp9", "av1", "libdav1d", "libaom-av1")
_STORES_TIMES = ("mov", "mp4", "matroska", "webm")

# Rates outside this range come from damaged headers.
_MIN_FPS, _MAX_FPS = 1e-5, 1e5


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """Frames of one file in presentation order."""

    pts: np.ndarray | None
    """Presentation times in ticks of `time_base`, increasing; None if the file's times do not
    increase, in which case frames are found by counting from the start."""
    keyframes: np.ndarray
    """Ticks at which decoding can start, increasing; empty if seeking is not exact."""
    times: np.ndarray
    """Presentation time of each frame, in seconds from the first."""
    fps: float
    """Mean frame rate; that of the container if there is only one frame."""
    last_s: float
    """Seconds that the last frame is shown."""
    decoded: bool
    """True if the index comes from decoded frames, and so is certain to be right."""

    @property
    def num_frames(self) -> int:
        return len(self.times)

    @property
    def durations(self) -> list[float] | None:
        """Seconds that each frame is shown; None at an even rate."""
        even = np.arange(self.num_frames) / self.fps
        is_even = np.abs(self.times - even).max() <= min(2e-3, 0.25 / self.fps)
        if is_even and abs(self.last_s - 1 / self.fps) <= 0.5 / self.fps:
            return None
        return [*np.diff(self.times).tolist(), self.last_s]


def build_index(path: str | os.PathLike, num_threads: int, by_decoding: bool = False) -> FrameIndex:
    """Builds the index from packets, or where that is uncertain, from frames."""
    container, stream = open_video(path, num_threads)
    with container:
        index = None if by_decoding else _from_packets(container, stream)
    if index is None:
        frames = [
            (frame.pts, frame.key_frame, getattr(frame, "duration", 0))  # new in PyAV 14
            for frame in decode_all(path, num_threads)
        ]
        container, stream = open_video(path, num_threads)
        with container:
            index = _from_frames(container, stream, frames)
    if not index.num_frames:
        raise UnusableMedia(path, "holds no frame that can be decoded")
    return index


def _from_packets(container: Any, stream: Any) -> FrameIndex | None:
    codec = stream.codec_context.name
    if codec not in _ONE_FRAME_PER_PACKET and not (
        codec in _REORDERED and has_format(container, _STORES_TIMES)
    ):
        return None
    pts, keyframes, durations, first = [], [], {}, None
    for packet in demux(container, stream):
        first = packet.pts if first is None else first
        # Without a keyframe first, it is unknown which frames can be decoded.
        if packet.pts is None or not (keyframes or packet.is_keyframe):
            return None
        # Discarded packets lie outside the edit list: needed for other frames, but not shown.
        if packet.is_keyframe:
            keyframes.append(packet.pts)
        if not packet.is_discard:
            pts.append(packet.pts)
            durations[packet.pts] = packet.duration
    # Frames shown before the first keyframe lack their references and may not be decodable.
    if not pts or min(pts) < first or len(pts) != len(set(pts)):
        return None
    ordered = np.array(sorted(pts), np.int64)
    last = durations[int(ordered[-1])]
    return _index(container, stream, ordered, sorted(keyframes), False, last)


def _from_frames(
    container: Any, stream: Any, frames: list[tuple[int | None, bool, int | None]]
) -> FrameIndex:
    pts = [tick for tick, *_ in frames]
    keyframes = [tick for tick, is_keyframe, _ in frames if is_keyframe]
    ordered = None not in pts and all(a < b for a, b in pairwise(pts))
    # A bare MPEG-1 or 2 stream has no times, and those that FFmpeg makes up have gaps.
    if ordered and container.format.name != "mpegvideo":
        last = frames[-1][2] if frames else None
        return _index(container, stream, np.array(pts, np.int64), keyframes, True, last)
    fps = _plausible(as_fraction(stream.average_rate)) or 25.0
    times = np.arange(len(pts)) / fps
    return FrameIndex(None, np.array([], np.int64), times, fps, 1 / fps, True)


def _index(
    container: Any,
    stream: Any,
    pts: np.ndarray,
    keyframes: list[int],
    decoded: bool,
    last: int | None = None,
) -> FrameIndex:
    seekable = has_format(container, _SEEKABLE)
    time_base = as_fraction(stream.time_base)
    # Python's integers cannot overflow, even with damaged times.
    ticks = [int(tick) - int(pts[0]) for tick in pts]
    times = np.array([tick * time_base.numerator / time_base.denominator for tick in ticks])
    fps = _mean_rate(ticks, time_base, as_fraction(stream.average_rate))
    between = np.diff(times) if len(times) > 1 else np.array([0.0])
    last_s = float((last or 0) * time_base)
    # Writers that do not know the end put a tick there; more than a day is a damaged header.
    if not between.min() / 2 < last_s < 86400:
        last_s = float(np.median(between)) or 1 / fps
    keyframes = np.array(keyframes if seekable else [], np.int64)
    return FrameIndex(pts, keyframes, times, fps, last_s, decoded)


def _mean_rate(ticks: list[int], time_base: Fraction, stated: Fraction | None) -> float:
    span = ticks[-1] * time_base if ticks else 0
    # Times are rounded to ticks (a millisecond in mkv), so the container's rate may be more exact.
    if not span or (stated and abs(len(ticks) - 1 - span * stated) <= time_base * stated):
        return _plausible(stated) or 25.0
    return _plausible((len(ticks) - 1) / span) or 25.0


def _plausible(rate: Fraction | None) -> float | None:
    return float(rate) if rate and _MIN_FPS <= rate <= _MAX_FPS else None

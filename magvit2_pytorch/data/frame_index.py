"""Which frames a video file holds and when they are shown, mostly without decoding them.

Headers lie about counts and rates, so frames are counted. In most files each packet is one
frame, and reading the packets is enough (a millisecond per hundred frames). Where that is
not sure (see the lists below), or turned out wrong, the frames are decoded once.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np

from magvit2_pytorch.data.unusable import UnusableMedia, check_regular_file

# Containers that find a keyframe by its exact time. MPEG program and transport streams guess
# a byte position and invent times after it, and a gif's frames paint on the ones before.
_SEEKABLE = ("mov", "mp4", "matroska", "webm", "avi")

# Where a packet is a frame. VP8 has packets that are never shown, MPEG-4 part 2 has packets
# that repeat a frame and packets that hold two, MPEG-2 fields come in pairs: not those.
_ONE_FRAME_A_PACKET = (
    "gif", "mjpeg", "png", "apng", "ffv1", "prores", "dnxhd", "huffyuv", "ffvhuff", "rawvideo",
)  # fmt: skip

# The same, for codecs that reorder frames, in containers that say when a packet is shown. An
# avi does not, and what FFmpeg makes up for it is not the order in which frames come out.
_REORDERED = ("h264", "hevc", "vp9", "av1", "libdav1d", "libaom-av1")
_SAY_WHEN_SHOWN = ("mov", "mp4", "matroska", "webm")

# Formats that hold what they show. Others (playlists, scripts) name files and addresses that
# would be opened in the place of theirs.
_SELF_CONTAINED = (
    "mov", "matroska", "webm", "avi", "gif", "mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc",
    "av1", "obu", "ivf", "flv", "asf", "ogg", "mxf", "nut", "yuv4mpegpipe", "mjpeg", "apng",
    "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "wav", "mp3", "aac", "flac",
)  # fmt: skip

# Of one frame (8192 x 8192): a header that says more is damaged or malicious, and is believed so
# before memory is asked for.
_MAX_PIXELS = 2**26

# Rates that a clock can tell; others come from headers that are damaged.
_SLOWEST_FPS, _FASTEST_FPS = 1e-5, 1e5


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """The frames of one file in the order they are shown."""

    pts: np.ndarray | None
    """When each is shown, in ticks of `time_base`, increasing; None where the file's times
    cannot tell frames apart, which are then told by counting from the start."""

    keyframes: np.ndarray
    """The ticks at which decoding can begin, increasing; empty where seeking is not exact."""

    times: np.ndarray
    """When each frame is shown, seconds from the first."""

    fps: float
    """The mean rate; the container's word for it where there is one frame only."""

    decoded: bool
    """Whether the frames were seen decoded, so that the index is a fact, not a claim."""

    @property
    def num_frames(self) -> int:
        return len(self.times)


def open_container(path: str | os.PathLike) -> Any:
    """A media file, open for reading: this file, and no other that it may name.

    Raises `UnusableMedia` on what is no media file, and PyAV's errors on a damaged one.
    """
    import av

    check_regular_file(path)
    # PyAV before 19 raises on a comment that is not UTF-8, which is no fault of the frames.
    old = int(av.__version__.split(".")[0]) < 19
    limits = {"format_whitelist": ",".join(_SELF_CONTAINED), "protocol_whitelist": "file"}
    try:
        return av.open(
            # A name like `http:clip.mp4` is an address to FFmpeg, but for a path in front.
            os.path.abspath(path),
            options={"max_pixels": str(_MAX_PIXELS)},
            container_options=limits,
            **({"metadata_errors": "ignore"} if old else {}),
        )
    except av.error.ArgumentError as error:
        raise UnusableMedia(path, "holds no format that a video or its sound has") from error


def open_video(path: str | os.PathLike, num_threads: int) -> tuple[Any, Any]:
    """Container and first real video stream (not a cover picture) of a file."""
    container = open_container(path)
    try:
        streams = container.streams.video
        if not streams:
            raise UnusableMedia(path, "holds no video stream")
        stream = next((s for s in streams if not _is_cover(s)), streams[0])
        if stream.codec_context is None:
            raise UnusableMedia(path, "no decoder for its video stream")
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = num_threads
        stream.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}
        return container, stream
    except BaseException:
        container.close()
        raise


def _is_cover(stream: Any) -> bool:
    with suppress(AttributeError):
        return bool(stream.disposition & stream.disposition.attached_pic)
    return False


def build_index(path: str | os.PathLike, num_threads: int, by_decoding: bool = False) -> FrameIndex:
    """Reads the packets of a file, or all its frames where packets do not settle it.

    Raises `UnusableMedia` where there is no frame.
    """
    container, stream = open_video(path, num_threads)
    with container:
        index = None if by_decoding else _from_packets(container, stream)
    if index is None:
        seen = [(frame.pts, frame.key_frame) for frame in decode_all(path, num_threads)]
        container, stream = open_video(path, num_threads)
        with container:
            index = _from_frames(container, stream, seen)
    if not index.num_frames:
        raise UnusableMedia(path, "holds no frame that can be decoded")
    return index


def _from_packets(container: Any, stream: Any) -> FrameIndex | None:
    codec = stream.codec_context.name
    if codec not in _ONE_FRAME_A_PACKET and not (
        codec in _REORDERED and _is_one_of(container, _SAY_WHEN_SHOWN)
    ):
        return None
    pts, keyframes, first = [], [], None
    for packet in demux(container, stream):
        first = packet.pts if first is None else first
        # Without a keyframe in front, who knows which frames come out.
        if packet.pts is None or not (keyframes or packet.is_keyframe):
            return None
        # Discarded packets lie outside the edit list: decoded for the sake of the others.
        if packet.is_keyframe:
            keyframes.append(packet.pts)
        if not packet.is_discard:
            pts.append(packet.pts)
    # Frames shown before the first keyframe miss what they refer to and may not come out.
    if not pts or min(pts) < first or len(pts) != len(set(pts)):
        return None
    ordered = np.array(sorted(pts), np.int64)
    return _index(container, stream, ordered, sorted(keyframes), decoded=False)


def _from_frames(container: Any, stream: Any, seen: list[tuple[int | None, bool]]) -> FrameIndex:
    pts = [tick for tick, _ in seen]
    keyframes = [tick for tick, is_keyframe in seen if is_keyframe]
    ordered = None not in pts and all(a < b for a, b in pairwise(pts))
    if ordered:
        return _index(container, stream, np.array(pts, np.int64), keyframes, decoded=True)
    fps = _believable(as_fraction(stream.average_rate)) or 25.0
    return FrameIndex(None, np.array([], np.int64), np.arange(len(pts)) / fps, fps, True)


def _index(
    container: Any, stream: Any, pts: np.ndarray, keyframes: list[int], decoded: bool
) -> FrameIndex:
    seekable = _is_one_of(container, _SEEKABLE)
    time_base = as_fraction(stream.time_base)
    # In Python's integers, which damaged times cannot overflow.
    ticks = [int(tick) - int(pts[0]) for tick in pts]
    times = np.array([tick * time_base.numerator / time_base.denominator for tick in ticks])
    fps = _mean_rate(ticks, time_base, as_fraction(stream.average_rate))
    return FrameIndex(pts, np.array(keyframes if seekable else [], np.int64), times, fps, decoded)


def _is_one_of(container: Any, names: tuple[str, ...]) -> bool:
    return not set(container.format.name.split(",")).isdisjoint(names)


def as_fraction(rational: Any) -> Fraction | None:
    """A `Fraction` of what PyAV gives, which from version 19 on is a class of its own."""
    return Fraction(rational.numerator, rational.denominator) if rational else None


def _mean_rate(ticks: list[int], time_base: Fraction, claimed: Fraction | None) -> float:
    span = ticks[-1] * time_base if ticks else 0
    # Times are rounded to ticks (a millisecond in mkv), so the container may know better.
    if not span or (claimed and abs(len(ticks) - 1 - span * claimed) <= time_base * claimed):
        return _believable(claimed) or 25.0
    return _believable((len(ticks) - 1) / span) or 25.0


def _believable(rate: Fraction | None) -> float | None:
    return float(rate) if rate and _SLOWEST_FPS <= rate <= _FASTEST_FPS else None


def demux(container: Any, stream: Any) -> Iterator[Any]:
    """The stream's packets to the end of what is there: a file cut off just ends earlier."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        if packet.size:
            yield packet


def decode(container: Any, stream: Any, packets: Iterator[Any] | None = None) -> Iterator[Any]:
    """The frames that come out, in the order shown.

    Packets that cannot be decoded give none; they end it where the decoder has several threads.
    """
    import av

    context = stream.codec_context
    for packet in chain(packets or demux(container, stream), (None,)):
        try:
            frames = context.decode(packet)
        except av.error.FFmpegError:
            if context.thread_count > 1:
                return
        else:
            yield from frames


def decode_all(path: str | os.PathLike, num_threads: int) -> Iterator[Any]:
    """All frames of a file in the order shown, the same ones for any number of threads.

    With an error PyAV drops the sound frames that other threads have in hand. So where a packet
    gave no frame, one thread alone goes over the file again for those that are missing.
    """
    container, stream = open_video(path, num_threads)
    num_packets, num_frames = 0, 0

    def counted() -> Iterator[Any]:
        nonlocal num_packets
        for packet in demux(container, stream):
            num_packets += not packet.is_discard
            yield packet

    with container:
        for frame in decode(container, stream, counted()):
            yield frame
            num_frames += 1
    if num_threads > 1 and num_frames < num_packets:
        yield from islice(decode_all(path, 1), num_frames, None)

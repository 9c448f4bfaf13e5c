"""Index of a video file's frames and their times, mostly without decoding.

Headers can be wrong about counts and rates, so frames are counted. In most files each packet is
one frame, and reading the packets is enough (a millisecond per hundred frames). Where that is
not certain (see the lists below) or proved wrong, the frames are decoded once.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice, pairwise
from typing import Any, NamedTuple

import numpy as np

from magvit2_pytorch.media.unusable import UnusableMedia, check_regular_file

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

# Formats that contain their media. Others (playlists, scripts) name files and addresses, which
# would be opened instead.
_SELF_CONTAINED = (
    "mov", "matroska", "webm", "avi", "gif", "mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc",
    "av1", "obu", "ivf", "flv", "asf", "ogg", "mxf", "nut", "yuv4mpegpipe", "mjpeg", "apng",
    "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "wav", "mp3", "aac", "flac",
)  # fmt: skip

# Pixels of one frame (8192 x 8192). A header that claims more is damaged or malicious, and is
# refused before memory is allocated.
_MAX_PIXELS = 2**26

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

    decoded: bool
    """True if the index comes from decoded frames, and so is certain to be right."""

    @property
    def num_frames(self) -> int:
        return len(self.times)


def open_container(path: str | os.PathLike) -> Any:
    """Opens a media file, but no other file that it refers to.

    Raises `UnusableMedia` if it is not a media file, and PyAV's errors if it is damaged.
    """
    import av

    check_regular_file(path)
    # PyAV before 19 raises on comments that are not UTF-8, though the frames are intact.
    old = int(av.__version__.split(".")[0]) < 19
    limits = {"format_whitelist": ",".join(_SELF_CONTAINED), "protocol_whitelist": "file"}
    try:
        return av.open(
            # FFmpeg takes a name like `http:clip.mp4` for an address; an absolute path is safe.
            os.path.abspath(path),
            options={"max_pixels": str(_MAX_PIXELS)},
            container_options=limits,
            **({"metadata_errors": "ignore"} if old else {}),
        )
    except av.error.ArgumentError as error:
        raise UnusableMedia(path, "holds no known video or audio format") from error


def open_video(path: str | os.PathLike, num_threads: int) -> tuple[Any, Any]:
    """Opens the video stream that `choose_stream` chooses."""
    container = open_container(path)
    try:
        stream = choose_stream(container.streams.video)
        if stream is None:
            raise UnusableMedia(path, "holds no video stream")
        if stream.codec_context is None:
            raise UnusableMedia(path, "no decoder for its video stream")
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = num_threads
        stream.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}
        return container, stream
    except BaseException:
        container.close()
        raise


class FirstFrame(NamedTuple):
    """The first decoded frame of a video, and what its stream says of it."""

    frame: Any
    time_s: Fraction
    sample_aspect: Fraction
    """Width of a stored pixel relative to its height."""


def first_frame(path: str | os.PathLike) -> FirstFrame | None:
    """The first frame that can be decoded, if any."""
    container, stream = open_video(path, num_threads=1)
    with container:
        frame = next(decode(container, stream), None)
        if frame is None:
            return None
        time_s = (frame.pts or 0) * as_fraction(stream.time_base)
        aspect = as_fraction(stream.sample_aspect_ratio) or Fraction(1)
        # Others come from damaged headers.
        plausible = Fraction(1, 16) <= aspect <= 16
        return FirstFrame(frame, time_s, aspect if plausible else Fraction(1))


def choose_stream(streams: Iterable[Any]) -> Any:
    """The stream that players choose, None if there is none.

    That is the first with the default flag, or else the first, of those that can be decoded.
    Cover pictures and thumbnails only count if there is nothing else.
    """

    def rank(stream: Any) -> tuple[bool, bool, bool]:
        flags = stream.disposition
        is_picture = bool(flags & (flags.attached_pic | flags.timed_thumbnails))
        return not is_picture, stream.codec_context is not None, bool(flags & flags.default)

    return max(streams, key=rank, default=None)


def build_index(path: str | os.PathLike, num_threads: int, by_decoding: bool = False) -> FrameIndex:
    """Builds the index from packets, or where that is uncertain, from frames.

    Raises `UnusableMedia` if there is no frame.
    """
    container, stream = open_video(path, num_threads)
    with container:
        index = None if by_decoding else _from_packets(container, stream)
    if index is None:
        frames = [(frame.pts, frame.key_frame) for frame in decode_all(path, num_threads)]
        container, stream = open_video(path, num_threads)
        with container:
            index = _from_frames(container, stream, frames)
    if not index.num_frames:
        raise UnusableMedia(path, "holds no frame that can be decoded")
    return index


def _from_packets(container: Any, stream: Any) -> FrameIndex | None:
    codec = stream.codec_context.name
    if codec not in _ONE_FRAME_PER_PACKET and not (
        codec in _REORDERED and _has_format(container, _STORES_TIMES)
    ):
        return None
    pts, keyframes, first = [], [], None
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
    # Frames shown before the first keyframe lack their references and may not be decodable.
    if not pts or min(pts) < first or len(pts) != len(set(pts)):
        return None
    ordered = np.array(sorted(pts), np.int64)
    return _index(container, stream, ordered, sorted(keyframes), decoded=False)


def _from_frames(container: Any, stream: Any, frames: list[tuple[int | None, bool]]) -> FrameIndex:
    pts = [tick for tick, _ in frames]
    keyframes = [tick for tick, is_keyframe in frames if is_keyframe]
    ordered = None not in pts and all(a < b for a, b in pairwise(pts))
    # A bare MPEG-1 or 2 stream has no times, and those that FFmpeg makes up have gaps.
    if ordered and container.format.name != "mpegvideo":
        return _index(container, stream, np.array(pts, np.int64), keyframes, decoded=True)
    fps = _plausible(as_fraction(stream.average_rate)) or 25.0
    return FrameIndex(None, np.array([], np.int64), np.arange(len(pts)) / fps, fps, True)


def _index(
    container: Any, stream: Any, pts: np.ndarray, keyframes: list[int], decoded: bool
) -> FrameIndex:
    seekable = _has_format(container, _SEEKABLE)
    time_base = as_fraction(stream.time_base)
    # Python's integers cannot overflow, even with damaged times.
    ticks = [int(tick) - int(pts[0]) for tick in pts]
    times = np.array([tick * time_base.numerator / time_base.denominator for tick in ticks])
    fps = _mean_rate(ticks, time_base, as_fraction(stream.average_rate))
    return FrameIndex(pts, np.array(keyframes if seekable else [], np.int64), times, fps, decoded)


def _has_format(container: Any, names: tuple[str, ...]) -> bool:
    return not set(container.format.name.split(",")).isdisjoint(names)


def as_fraction(rational: Any) -> Fraction | None:
    """Converts PyAV's rational, since version 19 another class, to `Fraction`."""
    return Fraction(rational.numerator, rational.denominator) if rational else None


def _mean_rate(ticks: list[int], time_base: Fraction, stated: Fraction | None) -> float:
    span = ticks[-1] * time_base if ticks else 0
    # Times are rounded to ticks (a millisecond in mkv), so the container's rate may be more exact.
    if not span or (stated and abs(len(ticks) - 1 - span * stated) <= time_base * stated):
        return _plausible(stated) or 25.0
    return _plausible((len(ticks) - 1) / span) or 25.0


def _plausible(rate: Fraction | None) -> float | None:
    return float(rate) if rate and _MIN_FPS <= rate <= _MAX_FPS else None


def demux(container: Any, stream: Any) -> Iterator[Any]:
    """Yields the packets of a stream; a truncated file just ends earlier."""
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
    """Yields the frames that can be decoded, in presentation order.

    Packets that cannot be decoded give no frame; if the decoder has several threads, the first
    such packet ends the iteration.
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
    """Yields all frames in order, the same for any number of threads.

    On an error PyAV drops the intact frames in its other threads. So if a packet gave no frame,
    one thread decodes the file again for the missing frames.
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

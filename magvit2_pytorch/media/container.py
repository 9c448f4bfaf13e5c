"""Opens media files: the container, its stream, frames in order."""

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain, islice
from typing import Any, NamedTuple

from magvit2_pytorch.media.frames import Crop, Display, Orientation, square_size
from magvit2_pytorch.media.unusable import UnusableMedia, check_regular_file

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

# Names of elements of an mkv, and those of a frame's sides in the order of `Crop`.
_SEGMENT, _TRACKS, _TRACK, _VIDEO = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe0"
_CROP_SIDES = (b"\x54\xbb", b"\x54\xaa", b"\x54\xcc", b"\x54\xdd")


def open_container(path: str | os.PathLike) -> Any:
    """Opens a media file alone; `UnusableMedia` if it is not one."""
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
    """The first decoded frame of a video, and properties of its stream."""

    frame: Any
    time_s: Fraction
    sample_aspect: Fraction
    """Width of a stored pixel relative to its height."""
    crop: Crop
    """What the container, not the codec, says is not to be shown."""

    def shown(self, square_pixels: bool) -> tuple[tuple[int, int], Display]:
        """Height, width and tags of the upright frames."""
        height = self.frame.height - self.crop.top - self.crop.bottom
        width = self.frame.width - self.crop.left - self.crop.right
        aspect = self.sample_aspect
        if Orientation.of(self.frame).transposed:
            height, width, aspect = width, height, 1 / aspect
        if square_pixels:
            height, width = square_size(height, width, aspect)
            aspect = Fraction(1)
        tags = (self.frame.color_primaries, self.frame.color_trc)
        # 0, 2 and 3 say nothing.
        return (height, width), Display(aspect, *(1 if t in (0, 2, 3) else t for t in tags))


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
        crop = _container_crop(container, stream)
        if crop.top + crop.bottom >= frame.height or crop.left + crop.right >= frame.width:
            crop = Crop()
        return FirstFrame(frame, time_s, aspect if plausible else Fraction(1), crop)


def _container_crop(container: Any, stream: Any) -> Crop:
    """Cropping of an mp4 (`clap`) or mkv (`PixelCrop`).

    FFmpeg reads it and leaves it to the player, and PyAV does not show it. So a header of an mkv
    is written into memory, which takes a millisecond, and read.
    """
    import av

    header = io.BytesIO()
    if not has_format(container, ("mov", "matroska")):
        return Crop()
    # A codec that an mkv cannot hold is an error.
    with suppress(av.error.FFmpegError, ValueError), av.open(header, "w", "matroska") as copy:
        copy.add_stream_from_template(stream)
        copy.start_encoding()
    video = header.getvalue()
    for name in (_SEGMENT, _TRACKS, _TRACK, _VIDEO):
        video = _elements(video).get(name, b"")
    sides = _elements(video)
    return Crop(*(int.from_bytes(sides.get(name, b""), "big") for name in _CROP_SIDES))


def _elements(data: bytes) -> dict[bytes, bytes]:
    """Elements of an mkv, or inside one of its elements, by name."""
    elements, at = {}, 0
    while at < len(data):
        # The leading zeros of the first byte say how many bytes follow.
        name = data[at : at + 9 - data[at].bit_length()]
        at += len(name)
        start = at + 9 - data[at].bit_length()
        size = int.from_bytes(data[at:start], "big") - (1 << 7 * (start - at))
        at = start + size
        elements[name] = data[start:at]
    return elements


def choose_stream(streams: Iterable[Any]) -> Any:
    """The stream that players choose, a picture last; None without one."""

    def rank(stream: Any) -> tuple[bool, bool, bool]:
        flags = stream.disposition
        is_picture = bool(flags & (flags.attached_pic | flags.timed_thumbnails))
        return not is_picture, stream.codec_context is not None, bool(flags & flags.default)

    return max(streams, key=rank, default=None)


def has_format(container: Any, names: tuple[str, ...]) -> bool:
    """True if FFmpeg reads the file by one of these formats."""
    return not set(container.format.name.split(",")).isdisjoint(names)


def as_fraction(rational: Any) -> Fraction | None:
    """Converts PyAV's rational, since version 19 another class, to `Fraction`."""
    return Fraction(rational.numerator, rational.denominator) if rational else None


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
    """Yields the frames that can be decoded, in presentation order."""
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
    """Yields all frames in order, the same for any number of threads."""
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

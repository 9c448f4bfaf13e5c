"""A file's sound as packets for a container that is being written: as they are, or as AAC.

Both add their stream to the container with the first packet, which is to be asked for before
the container's header is written, and count times from `start`, seconds in the source.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import Any

from magvit2_pytorch.data.frame_index import as_fraction
from magvit2_pytorch.data.unusable import UnusableMedia

# FFmpeg writes these into an mp4 too, where few players but its own kin look for them.
_UNUSUAL_IN_MP4 = ("pcm_", "vorbis")

# The AAC encoder's layouts, by number of channels; other numbers are mixed down to stereo.
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}

# Times that miss the count of samples by less are rounded ones; by more, there is a pause.
_PAUSE_S = Fraction(1, 10)


def copied_packets(source: Any, target: Any, start: Fraction) -> Iterator[Any]:
    """The packets of the stream, unchanged but for when they are heard.

    Each is tried on a container that goes nowhere first: lists of codecs promise more than muxers
    keep, and a muxer that holds packets back would raise on a later one, of the video. Raises
    `ValueError` or PyAV's errors at the first that the container does not take.
    """
    path, format_name = source.container.name, target.format.name
    codec = source.codec_context.name
    if format_name == "mp4" and codec.startswith(_UNUSUAL_IN_MP4):
        raise UnusableMedia(path, f"{codec} is unusual in mp4")
    stream = None
    with _to_nowhere(format_name) as trial:
        trial_stream = trial.add_stream_from_template(source)
        for packet in source.container.demux(source):
            if not packet.size:  # the end
                continue
            if packet.pts is None or packet.dts is None:
                raise UnusableMedia(path, "a packet does not say when it is heard")
            _count_from(start, packet)
            packet.stream = trial_stream
            with _refusing(path, format_name):
                trial.mux(packet)
            stream = stream or target.add_stream_from_template(source)
            packet.stream = stream
            yield packet


def encoded_packets(source: Any, target: Any, start: Fraction) -> Iterator[Any]:
    """The stream decoded and encoded as AAC, mono, stereo, 5.1 or 7.1.

    Raises PyAV's errors at the first packet that cannot be decoded.
    """
    stream = None
    for frame in _on_one_clock(_decoded(source), start):
        stream = stream or _add_aac(target, frame)
        yield from stream.encode(frame)
    if stream is not None:
        yield from stream.encode(None)


@contextmanager
def _to_nowhere(format_name: str) -> Iterator[Any]:
    import av

    container = av.open(os.devnull, "w", format=format_name)
    try:
        yield container
    finally:
        # Nobody reads it, so it need not be finished well.
        with suppress(av.error.FFmpegError):
            container.close()


@contextmanager
def _refusing(path: str, format_name: str) -> Iterator[None]:
    """A muxer's error names the file it writes; ours names the one that is at fault."""
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        reason = f"a packet does not fit {format_name} ({error.strerror})"
        raise UnusableMedia(path, reason) from error


def _count_from(start: Fraction, packet: Any) -> None:
    """Moves a packet to when it is heard after `start`."""
    tick = as_fraction(packet.time_base)
    # An avi's ticks are as long as its packets, and none may fall on `start`: be finer, at least
    # to a tenth of a millisecond.
    finer = math.ceil(tick * 10_000)
    late = round(start * finer / tick)
    packet.pts, packet.dts = packet.pts * finer - late, packet.dts * finer - late
    packet.duration = (packet.duration or 0) * finer
    packet.time_base = tick / finer


def _decoded(source: Any) -> Iterator[Any]:
    for packet in source.container.demux(source):
        yield from packet.decode()


def _on_one_clock(frames: Iterator[Any], start: Fraction) -> Iterator[Any]:
    """Counts times in samples, so that a container's rounding neither stretches nor cuts sound."""
    count = None
    for frame in frames:
        rate = frame.sample_rate
        if frame.pts is not None:
            said = round((frame.pts * as_fraction(frame.time_base) - start) * rate)
            if count is None or abs(said - count) > _PAUSE_S * rate:
                count = said
        frame.pts = count = count or 0
        frame.time_base = Fraction(1, rate)
        count += frame.samples
        yield frame


def _add_aac(target: Any, frame: Any) -> Any:
    import av

    rates = av.Codec("aac", "w").audio_rates
    rate = frame.sample_rate if frame.sample_rate in rates else 48000
    stream = target.add_stream("aac", rate=rate)
    stream.codec_context.layout = _LAYOUTS.get(frame.layout.nb_channels, "stereo")
    # What sounds whole, or the most that a rate this low may have: 6144 bits in 1024 samples.
    stream.bit_rate = min(96_000, 6 * rate) * stream.codec_context.layout.nb_channels
    return stream

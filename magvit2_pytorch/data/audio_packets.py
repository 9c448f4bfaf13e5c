"""Audio packets for an output container, copied or encoded as AAC.

Both generators add their stream to the container with the first packet, so ask for it before the
container's header is written. Both shift times by `start`, in seconds of the source.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import Any

from magvit2_pytorch.data.frame_index import as_fraction
from magvit2_pytorch.data.unusable import UnusableMedia

# FFmpeg writes these codecs into an mp4, but few players outside FFmpeg read them there.
_UNUSUAL_IN_MP4 = ("pcm_", "vorbis")

# Layouts of the AAC encoder by number of channels; other numbers are mixed to stereo.
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}

# A smaller difference between a time and the sample count is rounding; a larger one, a pause.
_PAUSE_S = Fraction(1, 10)


def copied_packets(source: Any, target: Any, start: Fraction) -> Iterator[Any]:
    """Audio packets, copied, with timestamps shifted by `start`.

    Each packet is first written to a discarded container: muxers reject some codecs that they
    list, and a muxer that buffers packets would raise later, at a packet of the video. Raises
    `ValueError` or PyAV's errors at the first packet that the container rejects.
    """
    path, format_name = source.container.name, target.format.name
    codec = source.codec_context.name
    if format_name == "mp4" and codec.startswith(_UNUSUAL_IN_MP4):
        raise UnusableMedia(path, f"{codec} is unusual in mp4")
    stream = None
    with _discarded_container(format_name) as trial:
        trial_stream = trial.add_stream_from_template(source)
        for packet in source.container.demux(source):
            if not packet.size:  # the last packet is empty
                continue
            if packet.pts is None or packet.dts is None:
                raise UnusableMedia(path, "an audio packet has no time")
            _shift_times(packet, start)
            packet.stream = trial_stream
            with _muxing_errors(path, format_name):
                trial.mux(packet)
            stream = stream or target.add_stream_from_template(source)
            packet.stream = stream
            yield packet


def encoded_packets(source: Any, target: Any, start: Fraction) -> Iterator[Any]:
    """Audio packets, encoded as AAC in mono, stereo, 5.1 or 7.1.

    Raises PyAV's errors at the first packet that cannot be decoded.
    """
    stream = None
    for frame in _with_sample_times(_decode(source), start):
        stream = stream or _add_aac(target, frame)
        yield from stream.encode(frame)
    if stream is not None:
        yield from stream.encode(None)


@contextmanager
def _discarded_container(format_name: str) -> Iterator[Any]:
    import av

    container = av.open(os.devnull, "w", format=format_name)
    try:
        yield container
    finally:
        # Nobody reads it, so errors at its end do not matter.
        with suppress(av.error.FFmpegError):
            container.close()


@contextmanager
def _muxing_errors(path: str, format_name: str) -> Iterator[None]:
    """Turns a muxer's error about its output into `UnusableMedia` of the input."""
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        reason = f"a packet does not fit {format_name} ({error.strerror})"
        raise UnusableMedia(path, reason) from error


def _shift_times(packet: Any, start: Fraction) -> None:
    """Makes the times of a packet relative to `start`."""
    tick = as_fraction(packet.time_base)
    # In an avi a tick is as long as a packet, and `start` may lie between two: use ticks of at
    # most a tenth of a millisecond.
    factor = math.ceil(tick * 10_000)
    shift = round(start * factor / tick)
    packet.pts, packet.dts = packet.pts * factor - shift, packet.dts * factor - shift
    packet.duration = (packet.duration or 0) * factor
    packet.time_base = tick / factor


def _decode(source: Any) -> Iterator[Any]:
    for packet in source.container.demux(source):
        yield from packet.decode()


def _with_sample_times(frames: Iterator[Any], start: Fraction) -> Iterator[Any]:
    """Sets times by sample count; rounded times would stretch or cut sound."""
    count = None
    for frame in frames:
        rate = frame.sample_rate
        if frame.pts is not None:
            sample = round((frame.pts * as_fraction(frame.time_base) - start) * rate)
            if count is None or abs(sample - count) > _PAUSE_S * rate:
                count = sample
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
    # 96 kb/s per channel, or less at low rates: AAC allows 6144 bits in 1024 samples.
    stream.bit_rate = min(96_000, 6 * rate) * stream.codec_context.layout.nb_channels
    return stream

"""Audio packets, copied without decoding from one file to another."""

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from itertools import chain
from typing import Any

from magvit2_pytorch.media.container import as_fraction, choose_stream, first_frame, open_container
from magvit2_pytorch.media.unusable import UnusableMedia, decoding_errors

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
    """Audio packets, encoded as AAC in mono, stereo, 5.1 or 7.1."""
    stream = None
    decoded = (f for packet in source.container.demux(source) for f in packet.decode())
    for frame in _with_sample_times(decoded, start):
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


class AudioTrack:
    """Default audio stream of a file, written by packets to another.

    Packets are copied if the container accepts them, and encoded as AAC otherwise. Times are
    relative to the first frame of the file's video (to zero if it has none). Sound that begins
    earlier than that begins at zero, and the frames have to begin at `lead_s`. Create it before the
    container's first packet is written. A file without sound adds no stream. Sound that cannot be
    read or written ends with a warning, not an error.
    """

    def __init__(self, path: str | os.PathLike, target: Any):
        self.path = path
        self._target = target
        self._exits = ExitStack()
        self._packets: Iterator[Any] = iter(())
        self._next: Any = None
        self.lead_s = Fraction(0)
        """Seconds by which the sound begins before the first frame."""
        with self._stopping_on_errors():
            self._packets = self._open_packets()
            self._next = next(self._packets, None)

    def write_until(self, time_s: Fraction) -> None:
        """Writes the packets that start before this time."""
        with self._stopping_on_errors():
            while (packet := self._next) is not None:
                if packet.pts * as_fraction(packet.time_base) >= time_s:
                    return
                self._target.mux(packet)
                self._next = next(self._packets, None)

    def close(self) -> None:
        """Closes the file; nothing more is written."""
        self._packets, self._next = iter(()), None
        self._exits.close()

    def _open_packets(self) -> Iterator[Any]:
        import av

        source = self._open_stream()
        if source is None:
            return iter(())
        if source.codec_context is None:
            raise UnusableMedia(self.path, "no decoder for its audio stream")
        start = Fraction(0)
        with suppress(UnusableMedia):  # without video
            first = first_frame(self.path)
            start = first.time_s if first else start
        begin = (source.start_time or 0) * as_fraction(source.time_base)
        # AAC and others begin earlier by the delay of their encoder, which players hide.
        if start - begin > _PAUSE_S:
            start, self.lead_s = begin, start - begin
        packets = copied_packets(source, self._target, start)
        self._exits.callback(packets.close)
        try:
            return chain([next(packets)], packets)
        except StopIteration:
            return iter(())
        except (av.error.FFmpegError, ValueError):
            return encoded_packets(self._open_stream(), self._target, start)

    def _open_stream(self) -> Any:
        container = self._exits.enter_context(open_container(self.path))
        return choose_stream(container.streams.audio)

    @contextmanager
    def _stopping_on_errors(self) -> Iterator[None]:
        try:
            with decoding_errors(self.path):
                yield
        except UnusableMedia as error:
            self.close()
            # The line that called the method, above this function and contextlib.
            warnings.warn(f"no more sound from {error}", stacklevel=4)

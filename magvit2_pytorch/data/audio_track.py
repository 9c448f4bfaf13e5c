"""Audio of one video file for another file that is being written."""

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import chain
from typing import Any

from magvit2_pytorch.data.audio_packets import copied_packets, encoded_packets
from magvit2_pytorch.data.frame_index import as_fraction, decode, open_container, open_video
from magvit2_pytorch.data.unusable import UnusableMedia, decoding_errors


class AudioTrack:
    """First audio stream of a file, written packet by packet to another.

    Packets are copied if the container accepts them, and encoded as AAC otherwise. Times are
    relative to the first frame of the file's video (to zero if it has no video), so that sound
    and picture stay in sync. One packet is in memory at a time.

    Create it before the container's first packet is written. A file without sound adds no
    stream. Sound that cannot be read or written ends with a warning, not an error.
    """

    def __init__(self, path: str | os.PathLike, target: Any):
        self.path = path
        self._target = target
        self._exits = ExitStack()
        self._packets: Iterator[Any] = iter(())
        self._next: Any = None
        with self._stopping_on_errors():
            self._packets = self._open_packets()
            self._next = next(self._packets, None)

    def write_until(self, time_s: Fraction) -> None:
        """Writes the packets that start before this time."""
        with self._stopping_on_errors():
            while self._next is not None and _start_time(self._next) < time_s:
                self._target.mux(self._next)
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
        start = _first_frame_time(self.path)
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
        return next(iter(container.streams.audio), None)

    @contextmanager
    def _stopping_on_errors(self) -> Iterator[None]:
        try:
            with decoding_errors(self.path):
                yield
        except UnusableMedia as error:
            self.close()
            # The line that called the method, above this function and contextlib.
            warnings.warn(f"no more sound from {error}", stacklevel=4)


def _first_frame_time(path: str | os.PathLike) -> Fraction:
    """Time of a file's first video frame in seconds; 0 without video."""
    try:
        container, stream = open_video(path, num_threads=1)
    except UnusableMedia:
        return Fraction(0)
    with container:
        frame = next(decode(container, stream), None)
        if frame is None or frame.pts is None:
            return Fraction(0)
        return frame.pts * as_fraction(stream.time_base)


def _start_time(packet: Any) -> Fraction:
    return packet.pts * as_fraction(packet.time_base)

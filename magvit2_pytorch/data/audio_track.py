"""The sound of a video file, carried over into another file while that is written."""

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
    """The first audio stream of a file, and no other, for a container that is being written.

    Packets are copied as they are where the container takes them, and become AAC where it does
    not. Times count from the first frame of the file's video (from its own zero if it has none),
    so that what was seen and heard together still is. One packet is held at a time.

    To be made before the container's first packet is written. A file without sound adds no
    stream; sound that cannot be read or written ends there with a warning, and breaks nothing.
    """

    def __init__(self, path: str | os.PathLike, target: Any):
        self.path = path
        self._target = target
        self._exits = ExitStack()
        self._packets: Iterator[Any] = iter(())
        self._next: Any = None
        with self._ending_on_errors():
            self._packets = self._open_packets()
            self._next = next(self._packets, None)

    def write_until(self, time_s: Fraction) -> None:
        """Writes the packets that begin before this time."""
        with self._ending_on_errors():
            while self._next is not None and _begin(self._next) < time_s:
                self._target.mux(self._next)
                self._next = next(self._packets, None)

    def close(self) -> None:
        """Lets go of the file; nothing more is written."""
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
    def _ending_on_errors(self) -> Iterator[None]:
        try:
            with decoding_errors(self.path):
                yield
        except UnusableMedia as error:
            self.close()
            # Over this, contextlib and the method, to the line that called it.
            warnings.warn(f"no more sound from {error}", stacklevel=4)


def _first_frame_time(path: str | os.PathLike) -> Fraction:
    """When the first frame of a file's video is shown, seconds; 0 without one."""
    try:
        container, stream = open_video(path, num_threads=1)
    except UnusableMedia:
        return Fraction(0)
    with container:
        frame = next(decode(container, stream), None)
        if frame is None or frame.pts is None:
            return Fraction(0)
        return frame.pts * as_fraction(stream.time_base)


def _begin(packet: Any) -> Fraction:
    return packet.pts * as_fraction(packet.time_base)

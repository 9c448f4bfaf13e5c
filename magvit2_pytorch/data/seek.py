"""Exact random access to frames: seek to a keyframe and decode forward."""

import bisect
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from magvit2_pytorch.data.frame_index import FrameIndex, decode, demux

# Decoding on costs less than a new seek up to about this many frames (h264, 720p).
_SEEK_GAP = 16


def decode_at(
    container: Any, stream: Any, index: FrameIndex, wanted: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    """Yields (number, frame) for the wanted numbers (increasing) that can be decoded.

    An index without times or keyframes leaves one way: counting frames from the start.
    """
    if index.pts is not None and len(index.keyframes):
        for run in _runs(wanted, index):
            yield from _decode_run(container, stream, index, run)
    elif wanted:
        keep = set(wanted)
        for i, frame in enumerate(decode(container, stream)):
            if i in keep:
                yield i, frame
            if i == wanted[-1]:
                return


def _runs(wanted: Sequence[int], index: FrameIndex) -> Iterator[list[int]]:
    """Splits the wanted numbers where seeking to a keyframe saves decoding."""
    run = []
    for i in wanted:
        if run and i - run[-1] >= _SEEK_GAP and _keyframe(index, i) > _keyframe(index, run[-1]):
            yield run
            run = []
        run.append(i)
    if run:
        yield run


def _keyframe(index: FrameIndex, i: int) -> int:
    """Number of the last keyframe shown no later than the frame.

    In an open group of pictures, a frame shown before a keyframe can follow it in the file
    and then needs the previous keyframe, which is the one that this gives.
    """
    return max(bisect.bisect_right(index.keyframes, index.pts[i]) - 1, 0)


def _decode_run(
    container: Any, stream: Any, index: FrameIndex, run: list[int]
) -> Iterator[tuple[int, Any]]:
    missing = list(run)
    keyframe, step = _keyframe(index, run[0]), 1
    # If the index had to be built by decoding, a packet does not say which frame it gives.
    skips = not index.decoded
    while True:
        wanted = {int(index.pts[i]) for i in missing} if skips else None
        for frame in _decode_from(container, stream, int(index.keyframes[keyframe]), wanted):
            if frame.pts is None or frame.pts > index.pts[missing[0]]:
                break
            if frame.pts == index.pts[missing[0]]:
                yield missing.pop(0), frame
                if not missing:
                    return
        if skips:  # a decoder that guesses the order of frames may need all of them
            skips = False
            continue
        if keyframe == 0:
            return
        # Some packets are marked as keyframes but are not, and decoders drop the frames after them.
        keyframe, step = max(keyframe - step, 0), step * 2


def _decode_from(container: Any, stream: Any, tick: int, wanted: set[int] | None) -> Iterator[Any]:
    """Frames from the keyframe at or before `tick`, if seeking finds it.

    Frames that no other frame refers to are decoded only if wanted (by their ticks; None wants
    all). This saves half of the work on the way to a frame.
    """
    import av

    try:
        container.seek(tick, stream=stream)
    except av.error.FFmpegError:
        return
    packets = demux(container, stream)
    for packet in packets:
        if packet.is_keyframe:
            if packet.pts is not None and packet.pts <= tick:
                packets = _skip_unwanted(stream.codec_context, chain((packet,), packets), wanted)
                yield from decode(container, stream, packets)
            return


def _skip_unwanted(context: Any, packets: Iterator[Any], wanted: set[int] | None) -> Iterator[Any]:
    """Yields the packets; before each, tells the decoder whether to skip it."""
    for packet in packets:
        context.skip_frame = "DEFAULT" if wanted is None or packet.pts in wanted else "NONREF"
        yield packet

"""From the nearest keyframe forward: a few frames out of a long file, exactly."""

import bisect
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from magvit2_pytorch.data.frame_index import FrameIndex, decode, demux

# Decoding on costs less than opening a new run until about this many frames (h264, 720p).
_SEEK_GAP = 16


def decode_at(
    container: Any, stream: Any, index: FrameIndex, wanted: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    """Yields number and frame of the wanted frames (increasing), as far as the file gives them.

    Without times or keyframes to go by, counts frames from the start.
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
    """Parts the wanted frames where jumping to a later keyframe saves decoding."""
    run = []
    for i in wanted:
        if run and i - run[-1] >= _SEEK_GAP and _keyframe(index, i) > _keyframe(index, run[-1]):
            yield run
            run = []
        run.append(i)
    if run:
        yield run


def _keyframe(index: FrameIndex, i: int) -> int:
    """Which keyframe the frame is decoded from: the last one not shown after it.

    With open groups of pictures a frame shown before a keyframe can follow it in the file,
    and needs the keyframe before; this choice gives it that one.
    """
    return max(bisect.bisect_right(index.keyframes, index.pts[i]) - 1, 0)


def _decode_run(
    container: Any, stream: Any, index: FrameIndex, run: list[int]
) -> Iterator[tuple[int, Any]]:
    missing = list(run)
    keyframe, step = _keyframe(index, run[0]), 1
    # Where frames were found by decoding, a packet does not say which frame it makes.
    sparing = not index.decoded
    while True:
        wanted = {int(index.pts[i]) for i in missing} if sparing else None
        for frame in _decode_from(container, stream, int(index.keyframes[keyframe]), wanted):
            if frame.pts is None or frame.pts > index.pts[missing[0]]:
                break
            if frame.pts == index.pts[missing[0]]:
                yield missing.pop(0), frame
                if not missing:
                    return
        if sparing:  # a decoder that guesses the order of frames may need to see them all
            sparing = False
            continue
        if keyframe == 0:
            return
        # Some keyframes are so only by name, and decoders drop frames until they are sure.
        keyframe, step = max(keyframe - step, 0), step * 2


def _decode_from(container: Any, stream: Any, tick: int, wanted: set[int] | None) -> Iterator[Any]:
    """Frames from the keyframe at or before `tick`; none where the seek lands after it.

    Of frames that no other refers to only the wanted ones (by their ticks) are decoded, all if
    that is None: half of the work on the way to a frame.
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
                packets = _marked(stream.codec_context, chain((packet,), packets), wanted)
                yield from decode(container, stream, packets)
            return


def _marked(context: Any, packets: Iterator[Any], wanted: set[int] | None) -> Iterator[Any]:
    """The packets, each with the decoder told whether it may pass over it."""
    for packet in packets:
        context.skip_frame = "DEFAULT" if wanted is None or packet.pts in wanted else "NONREF"
        yield packet

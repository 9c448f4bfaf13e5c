"""Reads files in a separate process, which contains crashes of native code and hangs.

    python -m tests.data.faults_worker < names.txt

Prints `start NAME` before each file and one line of JSON after it: whether the file is usable, why
not, and which laws it breaks.
"""

import json
import resource
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import ImageDataset, VideoDataset
from magvit2_pytorch.media.images import read_image
from magvit2_pytorch.media.sources import IMAGE_SUFFIXES
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.media.video_reader import VideoFile

SPECS = (
    ClipSpec(num_frames=5, image_size=(16, 24), pad_short=True, flip=True, random_scale=(1, 2)),
    ClipSpec(num_frames=4, image_size=16, pad_short=True, fps=12.5, channels=1),
)
SPARE_BYTES = 3 << 29
"""What a file may ask for beyond what an idle process has: less than any bomb."""


def examine(path: Path) -> dict:
    """Reads one file in every possible way and reports the result."""
    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    broken = []
    reasons = {
        reason
        for spec in SPECS
        for reason in _reasons(ImageDataset if is_image else VideoDataset, path, spec, broken)
    }
    streamed, reason = _stream(path, is_image, broken)
    # What nothing can be cropped from can still be streamed; else all ways agree.
    if len({not reason for reason in reasons}) > 1:
        broken.append(f"now it is usable and now it is not: {reasons}")
    if streamed != ("" in reasons) and not all("too narrow" in reason for reason in reasons):
        broken.append(f"streams: {streamed}, but as clips: {reasons}")
    return {"usable": "" in reasons, "reason": reason or max(reasons), "broken": broken}


def _reasons(kind: type, path: Path, spec: ClipSpec, broken: list[str]) -> Iterator[str]:
    """Why an item cannot be had, time after time; nothing where it can."""
    shape = (spec.num_frames, *spec.size) if kind is VideoDataset else spec.size
    for epoch in range(2):
        try:
            if epoch == 0:
                dataset = kind([path], spec)
            item = dataset[(epoch, 0)]
        except ValueError as error:
            said = str(error)
            if f"{path}: " not in said:
                broken.append(f"unnamed: {error}")
            yield said.split(f"{path}: ")[-1]
            return
        yield ""
        if item.shape != (spec.channels, *shape) or item.dtype != torch.float32:
            broken.append(f"an item {tuple(item.shape)} of {item.dtype}")
        if not bool(((item >= -1) & (item <= 1)).all()):
            broken.append("values outside [-1, 1]")


def _stream(path: Path, is_image: bool, broken: list[str]) -> tuple[bool, str]:
    try:
        if is_image:
            if read_image(path, size=(8, 8)).shape != (8, 8, 3):
                broken.append("a picture of the wrong size")
            return True, ""
        video = VideoFile(path, num_threads=1)
        shapes = [tuple(frame.shape) for frame in video.frames((8, 8))]
        if set(shapes) != {(8, 8, 3)}:
            broken.append(f"streamed frames of {set(shapes)}")
        by_three = sum(1 for _ in VideoFile(path, num_threads=3).frames((8, 8)))
        if by_three != len(shapes):
            broken.append(f"{len(shapes)} frames by one thread, {by_three} by three")
        times = video.times
        if not (np.isfinite(times).all() and (np.diff(times) >= 0).all() and times[0] == 0):
            broken.append(f"times {times}")
        if not 0 < video.fps < float("inf") or not 0 < video.duration_s < float("inf"):
            broken.append(f"{video.fps} frames a second, {video.duration_s} s")
    except UnusableMedia as error:
        return False, error.reason
    return True, ""


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import av  # noqa: F401
    from PIL import Image

    Image.init()
    # Not the address space, of which every thread of a decoder reserves much and uses little.
    status = Path("/proc/self/status").read_text()
    used = int(status.split("VmData:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + SPARE_BYTES, used + SPARE_BYTES))
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        print(f"start {path}", flush=True)
        print(json.dumps(examine(path)), flush=True)


if __name__ == "__main__":
    main()

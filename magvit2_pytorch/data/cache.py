"""Disk cache of decoded videos at training size.

An entry is two files: `<key>.bin` holds the frames, and `<key>.json` their shape and times. The
latter is written last and marks a complete entry. The key is a hash of the video's path, size and
time of its last change.
"""

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from jaxtyping import Float

from magvit2_pytorch.atomic import as_path, normalized, replacing
from magvit2_pytorch.media.frames import resize_array
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.types import Frames

# Raised when the meaning of an entry changes: older entries are then not found.
_VERSION = 3

_CACHE_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n"
"""Of the Cache Directory Tagging Specification, bford.info/cachedir."""

# A video that needs more than this fraction of the cache is read from its file: one film would
# take the space of many clips, and minutes of decoding before its first item.
_MAX_SHARE = 0.1


class CachedVideo:
    """A decoded video in a memory map, with the interface of `VideoFile`."""

    def __init__(self, frames: np.ndarray, times: Float[np.ndarray, " t"], fps: float):
        self._frames, self.times, self.fps = frames, times, fps
        self.num_frames, self.height, self.width, self.channels = frames.shape

    def read(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> Frames:
        size = size or (self.height, self.width)
        return torch.from_numpy(np.stack([resize_array(self._frames[i], size) for i in indices]))


class FrameCache:
    """Folder of decoded videos of up to `max_gb` (10^9 bytes).

    Processes may share it. Entries are never evicted: when the cache is full, further videos are
    read from their files. Damaged entries (checked once per process) are written again.
    """

    def __init__(self, folder: str | os.PathLike, max_gb: float | int = 20.0):
        if not max_gb > 0:
            raise ValueError(f"cache_max_gb is {max_gb}: give a number above 0, or no cache_dir")
        self.folder = as_path(folder)
        self.max_bytes = int(max_gb * 1e9)
        self.folder.mkdir(parents=True, exist_ok=True)
        # By this file, backups and our own search for media leave the folder out.
        with suppress(OSError):
            if not any(self.folder.iterdir()):
                (self.folder / "CACHEDIR.TAG").write_text(_CACHE_TAG)
        self._writable = True

    def get(self, video: VideoFile, size: tuple[int, int]) -> CachedVideo | None:
        """Returns the frames resized to `size`, decoded now; None without space."""
        try:
            stat = os.stat(video.path)
        except OSError as error:
            raise UnusableMedia(video.path, "the file is missing") from error
        path = normalized(os.path.abspath(video.path))
        parts = (_VERSION, path, stat.st_size, stat.st_mtime_ns, *size, video.channels)
        key = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
        cached = self._load(key)
        num_bytes = video.num_frames * size[0] * size[1] * video.channels
        if cached is not None or not self._writable or num_bytes > self.max_bytes * _MAX_SHARE:
            return cached
        if num_bytes + self._num_bytes() > self.max_bytes:
            return None
        try:
            return self._load(key) if self._store(key, video, size) else None
        except OSError as error:  # a full disk need not stop training
            self._writable = False
            warnings.warn(f"no more frames are stored in {self.folder}: {error}", stacklevel=2)
            return None

    def _load(self, key: str) -> CachedVideo | None:
        """Loads an entry; None if it is missing or damaged."""
        try:
            metadata = json.loads((self.folder / f"{key}.json").read_text())
            frames = np.memmap(self.folder / f"{key}.bin", np.uint8, "r")
            frames = frames.reshape(metadata["shape"])
            if _checksum(frames) != metadata["checksum"]:
                return None
            return CachedVideo(frames, np.array(metadata["times"]), metadata["fps"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _store(self, key: str, video: VideoFile, size: tuple[int, int]) -> bool:
        checksum, count = 0, 0
        with replacing(self.folder / f"{key}.bin") as part, part.open("wb") as file:
            for frame in video.frames(size):
                data = frame.numpy().tobytes()
                checksum = zlib.crc32(data, checksum)
                file.write(data)
                count += 1
        if count != video.num_frames:
            # Not all frames of the index can be decoded: leave the file to exact reading.
            (self.folder / f"{key}.bin").unlink()
            return False
        metadata = {
            "path": video.path,
            "shape": [count, *size, video.channels],
            "times": video.times.tolist(),
            "fps": video.fps,
            "checksum": checksum,
        }
        with replacing(self.folder / f"{key}.json") as part:
            part.write_text(json.dumps(metadata))
        return True

    def _num_bytes(self) -> int:
        total = 0
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # another process removed it
                total += entry.stat().st_size
        return total


def _checksum(frames: np.ndarray) -> int:
    checksum = 0
    for frame in frames:
        checksum = zlib.crc32(frame, checksum)
    return checksum

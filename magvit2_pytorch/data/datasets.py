"""Map-style datasets of training examples from folders of videos or images."""

import os
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from magvit2_pytorch.config import check_at_least_one
from magvit2_pytorch.data.cache import CachedVideo, FrameCache
from magvit2_pytorch.data.clips import (
    ClipSpec,
    FrameRange,
    Window,
    check_frame_range,
    check_proportions,
    choose_clip,
    choose_part,
    choose_window,
    covering_size,
    crop,
)
from magvit2_pytorch.data.color_jitter import choose_colors
from magvit2_pytorch.data.workers import record_file
from magvit2_pytorch.media.frames import resize_array, to_float
from magvit2_pytorch.media.images import read_image
from magvit2_pytorch.media.sources import Source, find_media
from magvit2_pytorch.media.unusable import SkipLog, UnusableMedia
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.runtime import keyed_seed
from magvit2_pytorch.types import MediaKind

Key = int | tuple[int, int]
"""Number of an item, or (epoch, number)."""

# Each process keeps the index and the frame size of this many videos (about 100 kB per hour of
# video, 1 kB for a short clip).
_MAX_OPEN_VIDEOS = 1024

V = TypeVar("V")


class MediaDataset(Dataset, ABC):
    """Base class: keyed randomness, and replacement of unusable files.

    An item is a function of (seed, epoch, number) and the files alone, so training can resume at
    any item. An unusable file is replaced by another one, drawn by the same key. Each gives one
    warning, and `skipped` lists all of them, including those found by worker processes.
    """

    kind: MediaKind
    takes_epoch = True
    """Tells loaders that keys may be (epoch, number)."""
    always_in_range = True
    """Values lie in [-1, 1], even if those of a bright clip happen to lie in [0, 1]."""

    def __init__(self, source: Source, spec: ClipSpec, *, train: bool, seed: int):
        self.paths: list[Path] = find_media(source, self.kind)
        self.spec, self.train, self.seed, self.epoch = spec, train, seed, 0
        self._source = source if isinstance(source, str | os.PathLike) else "the given paths"
        self._skips = SkipLog()

    @abstractmethod
    def _load(self, path: Path, number: int, rng: random.Random | None) -> Tensor:
        """Reads one example from a file; raises `UnusableMedia` if that fails."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def skipped(self) -> dict[str, str]:
        """Unusable files found so far, and the reasons."""
        return self._skips.all()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch for plain keys, except in running workers."""
        self.epoch = epoch

    def __getitem__(self, key: Key) -> Tensor:
        epoch, number = key if isinstance(key, tuple) else (self.epoch, key)
        if not 0 <= number < len(self):
            raise IndexError(f"item {number} of {len(self)}")
        path = self.paths[number % len(self.paths)]
        # A few draws find a usable file if most files are usable; otherwise try all in turn.
        for attempt in range(32):
            rng = random.Random(keyed_seed("item", self.seed, epoch, number, attempt))
            if attempt:
                path = self.paths[rng.randrange(len(self.paths))]
            item = self._try(path, number, rng)
            if item is not None:
                return item
        return self._first_usable(number)

    def _choose_colors(self, rng: random.Random | None) -> Callable[[Tensor], Tensor]:
        """Other colours for the spec's fraction of training clips, the same for the rest."""
        fraction = self.spec.color_jitter_frac
        if rng is None or not fraction or rng.random() >= fraction:
            return lambda clip: clip
        return choose_colors(self.spec.channels, rng)

    def _first_usable(self, number: int) -> Tensor:
        """Example of the first usable file; raises `ValueError` if there is none."""
        for path in self.paths:
            rng = random.Random(keyed_seed("first usable", self.seed, number, str(path)))
            item = self._try(path, number, rng)
            if item is not None:
                return item
        reasons = list(self.skipped.items())
        shown = "; ".join(f"{path}: {reason}" for path, reason in reasons[:3])
        raise ValueError(
            f"none of the {len(self.paths)} {self.kind}s in {self._source} can be used: {shown}"
            + ("; ..." if len(reasons) > 3 else "")
        )

    def _try(self, path: Path, number: int, rng: random.Random) -> Tensor | None:
        if path in self._skips:
            return None
        record_file(path)
        try:
            return self._load(path, number, rng if self.train else None)
        except UnusableMedia as error:
            self._skips.add(error.path, error.reason)
            return None


class VideoDataset(MediaDataset):
    """Clips of videos, float32 `c t h w` in [-1, 1].

    `spec` describes the clips, and `source` is that of `find_media`. In training an item is a
    random clip of its video. With `train=False` clips have fixed positions (one: the middle of the
    video; several: spread from its start to its end), cropped at the centre and never mirrored.

    clips_per_video: number of items per video.
    frame_range: the part of each video that clips may use, e.g. `(None, -17)` to train on all
        but the last 17 frames and `(-17, None)` to validate on those; floats are fractions.
    cache_dir: folder for decoded frames, up to `cache_max_gb` (see `FrameCache`). Frames are
        stored at the size for the largest scale of `random_scale`. Without `random_scale` items
        are bit for bit the same as without a cache; with it they are resized twice and differ
        slightly.

    Raises `FileNotFoundError` or `ValueError` if there is no usable file.
    """

    kind: MediaKind = "video"

    def __init__(
        self,
        source: Source,
        spec: ClipSpec | None = None,
        *,
        train: bool = True,
        seed: int = 0,
        clips_per_video: int = 1,
        frame_range: FrameRange | None = None,
        cache_dir: str | os.PathLike | None = None,
        cache_max_gb: float | int = 20.0,
    ):
        check_frame_range(frame_range)
        check_at_least_one(clips_per_video=clips_per_video)
        super().__init__(source, spec or ClipSpec(), train=train, seed=seed)
        self.clips_per_video, self.frame_range = clips_per_video, frame_range
        self.cache = FrameCache(cache_dir, cache_max_gb) if cache_dir is not None else None
        self._files: dict[Path, VideoFile] = {}
        self._cached: dict[Path, CachedVideo | None] = {}
        self._first_usable(0)

    def __len__(self) -> int:
        return len(self.paths) * self.clips_per_video

    def __getstate__(self) -> dict[str, Any]:
        # Pickled memory maps would carry their contents to workers.
        return self.__dict__ | {"_files": {}, "_cached": {}}

    def _load(self, path: Path, number: int, rng: random.Random | None) -> Float[Tensor, "c t h w"]:
        file = _get_or_make(self._files, path, lambda: VideoFile(path, self.spec.channels))
        window = _window(path, file.height, file.width, self.spec, rng)
        part, recolor = choose_part(self.spec, rng), self._choose_colors(rng)
        cached = None
        if self.cache is not None:
            largest = self.spec.random_scale[1] if self.train and self.spec.random_scale else 1.0
            size = covering_size(file.height, file.width, self.spec.size, largest)
            cached = _get_or_make(self._cached, path, lambda: self.cache.get(file, size))

        def choose(video: VideoFile | CachedVideo) -> list[int]:
            clip, count = number // len(self.paths), self.clips_per_video
            frames = choose_clip(path, video, self.spec, self.frame_range, clip, count, rng)
            return frames[part.first : part.first + part.num_frames]

        frames = cached and cached.read(choose(cached), window.size)
        # For a damaged file this starts over each time, so that items do not depend on the order
        # of reading.
        while frames is None:
            frames = file.try_read(choose(file), window.size)
            file = file if frames is not None else file.fallback
        return recolor(to_float(crop(frames, part.within(window), part.size)))


class ImageDataset(MediaDataset):
    """Images `c h w`, resized and cropped, float32 in [-1, 1].

    Further options are those of `VideoDataset`; of `spec` only those of single frames are used.
    """

    kind: MediaKind = "image"

    def __init__(
        self, source: Source, spec: ClipSpec | None = None, *, train: bool = True, seed: int = 0
    ):
        super().__init__(source, spec or ClipSpec(num_frames=1), train=train, seed=seed)
        self._first_usable(0)

    def _load(self, path: Path, number: int, rng: random.Random | None) -> Float[Tensor, "c h w"]:
        picture = read_image(path, self.spec.channels)
        window = _window(path, *picture.shape[:2], self.spec, rng)
        part, recolor = choose_part(self.spec, rng), self._choose_colors(rng)
        resized = picture.new_tensor(resize_array(picture.numpy(), window.size))
        return recolor(to_float(crop(resized[None], part.within(window), part.size)[0]))


def _window(
    path: Path, height: int, width: int, spec: ClipSpec, rng: random.Random | None
) -> Window:
    check_proportions(path, height, width, spec.size)
    return choose_window(height, width, spec, rng)


def _get_or_make(cache: dict[Path, V], path: Path, make: Callable[[], V]) -> V:
    """Returns `cache[path]`, made if missing; a full cache drops its oldest entry."""
    if path not in cache:
        if len(cache) >= _MAX_OPEN_VIDEOS:
            del cache[next(iter(cache))]
        cache[path] = make()
    return cache[path]

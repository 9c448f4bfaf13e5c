"""Folders of videos or pictures as training examples, in torch's map style."""

import os
import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from magvit2_pytorch.data.cache import CachedVideo, FrameCache
from magvit2_pytorch.data.clips import (
    ClipSpec,
    FrameRange,
    Window,
    check_frame_range,
    check_proportions,
    choose_frames,
    choose_window,
    covering_size,
    crop,
    resolve_range,
)
from magvit2_pytorch.data.dead_workers import record_file
from magvit2_pytorch.data.frame_array import resize_array
from magvit2_pytorch.data.image_files import read_image
from magvit2_pytorch.data.pixels import to_float
from magvit2_pytorch.data.sources import Source, find_media
from magvit2_pytorch.data.unusable import SkipLog, UnusableMedia
from magvit2_pytorch.data.video_file import VideoFile
from magvit2_pytorch.seeds import keyed_seed
from magvit2_pytorch.types import MediaKind

Key = int | tuple[int, int]
"""The number of an item, or (epoch, number)."""

# Index and first frame's size of this many videos are kept by each process (about 100 kB
# each at an hour of video, 1 kB at a clip's length).
_OPEN_VIDEOS = 1024

V = TypeVar("V")


class MediaDataset(Dataset, ABC):
    """What the two datasets share: keyed randomness, and passing over unusable files.

    An item is a function of (seed, epoch, number) and the files alone: no global random
    state, the same in every process, so training can resume at any item. In place of a file
    that cannot be used comes another one, drawn by the same key. Each such file is warned
    about once, and `skipped` names all of them, also those that worker processes met.
    """

    kind: MediaKind
    takes_epoch = True
    """Tells loaders that items may be asked for as (epoch, number)."""

    def __init__(self, source: Source, spec: ClipSpec, *, train: bool, seed: int):
        self.paths: list[Path] = find_media(source, self.kind)
        self.spec = spec
        self.train = train
        self.seed = seed
        self.epoch = 0
        self._source = source if isinstance(source, str | os.PathLike) else "the given paths"
        self._skips = SkipLog()

    @abstractmethod
    def _load(self, path: Path, number: int, rng: random.Random | None) -> Tensor:
        """One example of the file; raises `UnusableMedia` where there is none."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def skipped(self) -> dict[str, str]:
        """The files met so far that could not be used, and why."""
        return self._skips.all()

    def set_epoch(self, epoch: int) -> None:
        """For plain numbers as keys; workers that are running do not hear of it.

        `InfiniteBatches` and `build_loader` ask for (epoch, number) and need no call.
        """
        self.epoch = epoch

    def __getitem__(self, key: Key) -> Tensor:
        epoch, number = key if isinstance(key, tuple) else (self.epoch, key)
        if not 0 <= number < len(self):
            raise IndexError(f"item {number} of {len(self)}")
        path = self.paths[number % len(self.paths)]
        # A few draws find a usable file where most are; where few are, look through them all.
        for attempt in range(32):
            rng = random.Random(keyed_seed("item", self.seed, epoch, number, attempt))
            if attempt:
                path = self.paths[rng.randrange(len(self.paths))]
            item = self._try(path, number, rng)
            if item is not None:
                return item
        return self._first_usable(number)

    def _first_usable(self, number: int) -> Tensor:
        """The example of the first file that gives one; raises `ValueError` if none does."""
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
    """Clips of videos: float32 `c t h w` in [-1, 1], as `spec` says.

    `source` is what `find_media` takes. In training each item is a random clip of its video;
    with `train=False` clips lie at fixed places (one: the middle of the video; several: from
    its beginning to its end), cropped at the centre, never mirrored.

    clips_per_video: how many items each video stands for.
    frame_range: the part of each video that clips may use, e.g. `(None, -17)` to train on all
        but the last 17 frames and `(-17, None)` to validate on those; floats are fractions.
    cache_dir: where to keep decoded frames, up to `cache_max_gb` (see `FrameCache`). Frames
        are kept at the size that covers the largest scale of `random_scale`: without
        `random_scale` items are bit for bit those without a cache, with it they are resized
        twice and differ slightly.

    Raises `FileNotFoundError` or `ValueError` where there is nothing that can be used.
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
        if clips_per_video < 1:
            raise ValueError(f"clips_per_video is {clips_per_video}: at least 1")
        super().__init__(source, spec or ClipSpec(), train=train, seed=seed)
        self.clips_per_video = clips_per_video
        self.frame_range = frame_range
        self.cache = FrameCache(cache_dir, cache_max_gb) if cache_dir is not None else None
        self._files: dict[Path, VideoFile] = {}
        self._cached: dict[Path, CachedVideo | None] = {}
        self._first_usable(0)

    def __len__(self) -> int:
        return len(self.paths) * self.clips_per_video

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps would be sent to workers as their contents.
        return self.__dict__ | {"_files": {}, "_cached": {}}

    def _load(self, path: Path, number: int, rng: random.Random | None) -> Float[Tensor, "c t h w"]:
        file = _recall(self._files, path, lambda: VideoFile(path, self.spec.channels))
        window = _window(path, file.height, file.width, self.spec, rng)
        cached = self._from_cache(path, file)
        frames = cached and cached.read(self._choose(path, cached, number, rng), window.size)
        # A damaged file is asked anew each time, so that what was read before does not matter.
        while frames is None:
            frames = file.try_read(self._choose(path, file, number, rng), window.size)
            file = file if frames is not None else file.distrusting
        return to_float(crop(frames, window, self.spec.size))

    def _choose(
        self, path: Path, video: VideoFile | CachedVideo, number: int, rng: random.Random | None
    ) -> list[int]:
        bounds = resolve_range(video.num_frames, self.frame_range)
        clip = number // len(self.paths)
        position = clip / (self.clips_per_video - 1) if self.clips_per_video > 1 else 0.5
        try:
            return choose_frames(video.times, video.fps, self.spec, bounds, rng, position)
        except ValueError as error:
            raise UnusableMedia(path, str(error)) from error

    def _from_cache(self, path: Path, file: VideoFile) -> CachedVideo | None:
        if self.cache is None:
            return None
        largest = self.spec.random_scale[1] if self.train and self.spec.random_scale else 1.0
        size = covering_size(file.height, file.width, self.spec.size, largest)
        return _recall(self._cached, path, lambda: self.cache.get(file, size))


class ImageDataset(MediaDataset):
    """Pictures: float32 `c h w` in [-1, 1], resized and cropped as `spec` says.

    Of the spec only what concerns one frame is used. See `VideoDataset` for the rest.
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
        resized = picture.new_tensor(resize_array(picture.numpy(), window.size))
        return to_float(crop(resized[None], window, self.spec.size)[0])


def _window(
    path: Path, height: int, width: int, spec: ClipSpec, rng: random.Random | None
) -> Window:
    check_proportions(path, height, width, spec.size)
    return choose_window(height, width, spec, rng)


def _recall(known: dict[Path, V], path: Path, make: Any) -> V:
    """`known[path]`, made when first needed; the oldest is forgotten when there are many."""
    if path not in known:
        if len(known) >= _OPEN_VIDEOS:
            del known[next(iter(known))]
        known[path] = make()
    return known[path]

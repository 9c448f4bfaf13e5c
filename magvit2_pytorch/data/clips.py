"""Choice of the frames and the crop of a clip."""

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from magvit2_pytorch.config import Options, check_at_least_one
from magvit2_pytorch.data.cache import CachedVideo
from magvit2_pytorch.media.frames import check_channels
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.media.video_reader import VideoFile

FrameRange = tuple[int | float | None, int | float | None]
"""Start and stop: frame numbers (negative ones count from the end), fractions, or None."""


@dataclass(frozen=True, kw_only=True)
class ClipSpec(Options):
    """Length, frame rate, size and augmentation of one training example.

    A frame is resized to the smallest size of the same aspect ratio that covers `image_size`,
    and then cropped: at a random position in training, at the centre otherwise. Shrinking
    averages areas, enlarging is bicubic.
    """

    owner = "a clip"

    num_frames: int = 17
    """Frames per clip; 1 + a multiple of the tokenizer's time factor. Images have one."""
    fps: float | int | None = None
    """Frames per second of the clip: takes the frames nearest in time, so a slower video
    repeats some. None takes frames by number."""
    frame_stride: int | None = None
    """Takes every n-th frame, whatever the frame rate; 1 unless `fps` is given."""
    image_size: int | tuple[int, int] = 128
    """Height and width of the clip in pixels, or one number for both."""
    channels: int = 3
    """1 grey, 3 RGB, 4 RGB and opacity."""
    flip: bool = False
    """Mirrors training clips left to right with probability 1/2."""
    random_scale: tuple[float | int, float | int] | None = None
    """In training, first enlarges the frame by a random factor from this range (at least 1), so
    that the crop shows a part of it."""
    color_jitter_frac: float | int = 0.0
    """Fraction of training clips in other colours: with random contrast, saturation and brightness,
    and with red, green and blue in a random order."""
    tubelet: tuple[int, int, int] | None = None
    """In training, a random part of the clip of this many frames, rows and columns takes the place
    of the clip."""
    pad_short: bool = False
    """Repeats the last frame of videos that are shorter than a clip, instead of skipping
    them."""

    def __post_init__(self):
        check_channels(self.channels)
        check_at_least_one(num_frames=self.num_frames, frame_stride=self.frame_stride)
        if self.fps is not None and self.frame_stride is not None:
            raise ValueError(f"fps {self.fps} and frame_stride {self.frame_stride}: give only one")
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"fps is {self.fps}: give a number above 0")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"image_size is {self.image_size}: give a side, or (height, width)")
        if self.random_scale is not None:
            low, high = self.random_scale
            if not 1 <= low <= high:
                raise ValueError(
                    f"random_scale is {self.random_scale}: give (low, high), both at least 1; "
                    "a smaller frame does not cover the crop"
                )
        if not 0 <= self.color_jitter_frac <= 1:
            raise ValueError(
                f"color_jitter_frac is {self.color_jitter_frac}: give a fraction from 0 to 1"
            )
        if self.tubelet is not None:
            check_tubelet(self.tubelet, (self.num_frames, *self.size))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the clip."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


def check_tubelet(
    tubelet: tuple[int, ...], clip: tuple[int, int, int], strides: tuple[int, int] = (1, 1)
) -> None:
    """Raises `ValueError` unless a tubelet fits the clip and the strides.

    `strides` are its time factor and its space factor: a tubelet has 1 + k * time factor frames.
    """
    name = "x".join(map(str, tubelet))
    if len(tubelet) != 3 or min(tubelet) < 1:
        raise ValueError(f"tubelet {name}: give frames, height and width, such as 5x64x64")
    if any(part > whole for part, whole in zip(tubelet, clip, strict=True)):
        raise ValueError(
            f"tubelet {name} does not lie in clips of {'x'.join(map(str, clip))}: give a smaller "
            "one, or larger num_frames and image_size"
        )
    time, space = strides
    below = 1 + (tubelet[0] - 1) // time * time
    if below != tubelet[0]:
        raise ValueError(
            f"tubelet {name}: {tubelet[0]} frames do not fit a time factor of {time}: use {below} "
            f"or {below + time}"
        )
    for side in tubelet[1:]:
        if side % space:
            near = [f"{n}" for n in (side // space * space, -(-side // space) * space) if n]
            raise ValueError(
                f"tubelet {name}: {side} pixels do not fit patches of {space}: use "
                f"{' or '.join(near)}"
            )


class Window(NamedTuple):
    """Size of the resized frame, corner of the crop, and mirroring."""

    size: tuple[int, int]
    top: int
    left: int
    flip: bool


def covering_size(
    height: int, width: int, target: tuple[int, int], scale: float = 1.0
) -> tuple[int, int]:
    """Smallest (height, width) of this aspect ratio that covers `scale` times `target`."""
    target = (max(round(target[0] * scale), target[0]), max(round(target[1] * scale), target[1]))
    # The tight side fits exactly; the other is never rounded below its target.
    if target[0] * width >= target[1] * height:
        return target[0], max(round(width * target[0] / height), target[1])
    return max(round(height * target[1] / width), target[0]), target[1]


def check_proportions(
    path: str | os.PathLike, height: int, width: int, target: tuple[int, int]
) -> None:
    """Raises `UnusableMedia` if resized frames would have 64 times the target's pixels."""
    resized_height, resized_width = covering_size(height, width, target)
    if resized_height * resized_width > 64 * target[0] * target[1]:
        raise UnusableMedia(path, f"too narrow: {width} pixels wide and {height} high")


def choose_window(height: int, width: int, spec: ClipSpec, rng: random.Random | None) -> Window:
    """Chooses the crop of a frame: random with `rng`, otherwise central."""
    scale = rng.uniform(*spec.random_scale) if rng and spec.random_scale else 1.0
    size = covering_size(height, width, spec.size, scale)
    spare = size[0] - spec.size[0], size[1] - spec.size[1]
    if rng is None:
        return Window(size, spare[0] // 2, spare[1] // 2, False)
    top, left = rng.randint(0, spare[0]), rng.randint(0, spare[1])
    return Window(size, top, left, spec.flip and rng.random() < 0.5)


class Part(NamedTuple):
    """Part of a clip: its first frame and place in the crop."""

    first: int
    num_frames: int
    top: int
    left: int
    size: tuple[int, int]

    def within(self, window: Window) -> Window:
        """The window of this part of the crop."""
        return window._replace(top=window.top + self.top, left=window.left + self.left)


def choose_part(spec: ClipSpec, rng: random.Random | None) -> Part:
    """The tubelet at a random place with `rng`; otherwise the whole clip."""
    if rng is None or spec.tubelet is None:
        return Part(0, spec.num_frames, 0, 0, spec.size)
    clip = (spec.num_frames, *spec.size)
    spare = [whole - part for whole, part in zip(clip, spec.tubelet, strict=True)]
    first, top, left = (rng.randint(0, room) for room in spare)
    return Part(first, spec.tubelet[0], top, left, spec.tubelet[1:])


def crop(
    frames: UInt8[Tensor, "t h w c"], window: Window, size: tuple[int, int]
) -> UInt8[Tensor, "t y x c"]:
    """Crops, and mirrors, frames that have been resized to `window.size`."""
    frames = frames[:, window.top : window.top + size[0], window.left : window.left + size[1]]
    return frames.flip(2) if window.flip else frames


def resolve_range(num_frames: int, frame_range: FrameRange | None) -> tuple[int, int]:
    """Start and stop of a frame range in a video of `num_frames`.

    Integers are frame numbers as in a slice, floats in [0, 1] are fractions of the video:
    `(None, -17)` is all but the last 17 frames, `(-17, None)` is the last 17, and `(0.0, 0.9)`
    is the first nine tenths.
    """

    def resolve(bound: int | float | None, default: int) -> int:
        if bound is None:
            return default
        if isinstance(bound, float):
            return round(bound * num_frames)
        return min(max(bound + num_frames if bound < 0 else bound, 0), num_frames)

    start, stop = frame_range or (None, None)
    return resolve(start, 0), resolve(stop, num_frames)


def check_frame_range(frame_range: FrameRange | None) -> None:
    """Raises `ValueError` if this is not a valid range of frames."""
    if frame_range is None:
        return
    if len(frame_range) != 2:
        raise ValueError(f"frame_range is {frame_range}: give (start, stop)")
    if any(isinstance(bound, float) and not 0 <= bound <= 1 for bound in frame_range):
        raise ValueError(
            f"frame_range is {frame_range}: floats are fractions from 0.0 to 1.0; "
            "give frame numbers as integers"
        )


def choose_frames(
    times: Float[np.ndarray, " t"],
    fps: float,
    spec: ClipSpec,
    bounds: tuple[int, int],
    rng: random.Random | None,
    position: float = 0.5,
) -> list[int]:
    """Chooses the frame numbers of a clip, given all `times` in seconds.

    The clip lies within `bounds`, at a random position with `rng`, otherwise at `position`: 0 is
    the earliest that fits, 1 the latest. Raises `ValueError` if the video is too short and the
    spec does not pad.
    """
    start, stop = bounds
    length = max(stop - start, 0)
    times = times[start:stop]
    if spec.fps is None:
        stride = spec.frame_stride or 1
        offsets = [i * stride for i in range(spec.num_frames)]
        num_starts = length - offsets[-1]
        needs = f"{offsets[-1] + 1} frames ({spec.num_frames} at a stride of {stride})"
    else:
        span = (spec.num_frames - 1) / spec.fps
        # The last frame is the nearest one until half of its duration has passed.
        last = times[-1] + 0.5 / fps if length else 0.0
        num_starts = int(np.searchsorted(times, last - span, side="right"))
        needs = f"{span:.3g} s ({spec.num_frames} frames at {spec.fps:g} per second)"
    if num_starts < 1:
        if not (spec.pad_short and length):
            available = f"{length} frames" + (f", {length / fps:.3g} s" if spec.fps else "")
            raise ValueError(f"too short: {available} to choose from, a clip needs {needs}")
        num_starts = 1
    first = rng.randrange(num_starts) if rng else round(position * (num_starts - 1))
    if spec.fps is None:
        chosen = [min(first + offset, length - 1) for offset in offsets]
    else:
        moments = times[first] + np.arange(spec.num_frames) / spec.fps
        chosen = nearest(times, moments)
    return [start + i for i in chosen]


def choose_clip(
    path: Path,
    video: VideoFile | CachedVideo,
    spec: ClipSpec,
    frame_range: FrameRange | None = None,
    number: int = 0,
    num_clips: int = 1,
    rng: random.Random | None = None,
) -> list[int]:
    """The frame numbers of a clip; `UnusableMedia` in a short video."""
    bounds = resolve_range(video.num_frames, frame_range)
    position = number / (num_clips - 1) if num_clips > 1 else 0.5
    try:
        return choose_frames(video.times, video.fps, spec, bounds, rng, position)
    except ValueError as error:
        raise UnusableMedia(path, str(error)) from error


def nearest(times: Float[np.ndarray, " t"], moments: Float[np.ndarray, " n"]) -> list[int]:
    """Numbers of the frames nearest to `moments`; the earlier on a tie."""
    right = np.searchsorted(times, moments).clip(0, len(times) - 1)
    left = (right - 1).clip(0)
    # A small tolerance: rounding errors in the times must not decide a tie.
    closer = np.abs(moments - times[left]) <= np.abs(times[right] - moments) + 1e-6
    return np.where(closer, left, right).tolist()

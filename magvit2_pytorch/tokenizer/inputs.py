"""Validation of a tokenizer's input video."""

from einops import rearrange
from torch import Tensor

from magvit2_pytorch.types import Video


def validate_video(video: Tensor, channels: int, space_factor: int) -> Video:
    """Checked video `b c t h w`; an image becomes one frame.

    Raises `TypeError` unless it is floating point, `ValueError` for a wrong shape.
    """
    if not video.is_floating_point():
        raise TypeError(
            f"video is {video.dtype}: give floating point in [-1, 1] "
            "(magvit2_pytorch.data.to_float converts bytes)"
        )
    if video.ndim not in (4, 5):
        raise ValueError(f"shape {tuple(video.shape)}: a video is b c t h w, an image is b c h w")
    video = rearrange(video, "b c h w -> b c 1 h w") if video.ndim == 4 else video
    _, num_channels, num_frames, height, width = video.shape
    if num_channels != channels:
        raise ValueError(
            f"{num_channels} channels in shape {tuple(video.shape)}, but this tokenizer has "
            f"{channels}: a video is b c t h w"
        )
    if num_frames < 1:
        raise ValueError("the video has no frames: give one or more")
    check_size(height, width, space_factor)
    return video


def check_size(height: int, width: int, factor: int) -> None:
    """Raise `ValueError` unless both sides, in pixels, are multiples of `factor`."""
    for name, side in (("height", height), ("width", width)):
        if side < factor or side % factor:
            below = max(factor, side // factor * factor)
            raise ValueError(
                f"{name} {side} is not a multiple of {factor}: resize, crop or pad to "
                f"{below} or {below + factor}"
            )

"""What may go into a tokenizer, and what is said of the rest."""

from einops import rearrange
from torch import Tensor

from magvit2_pytorch.types import Video


def as_video(video: Tensor, channels: int, space_factor: int) -> Video:
    """Video `b c t h w`, an image as one frame, or the error that says why it is neither."""
    if not video.is_floating_point():
        raise TypeError(
            f"video is {video.dtype}: give floating point in [-1, 1] "
            "(magvit2_pytorch.data.to_float turns bytes into it)"
        )
    if video.ndim not in (4, 5):
        raise ValueError(f"shape {tuple(video.shape)}: a video is b c t h w, an image is b c h w")
    video = rearrange(video, "b c h w -> b c 1 h w") if video.ndim == 4 else video
    _, found, num_frames, height, width = video.shape
    if found != channels:
        raise ValueError(
            f"{found} channels in shape {tuple(video.shape)}, but this tokenizer has "
            f"{channels}: a video is b c t h w"
        )
    if num_frames < 1:
        raise ValueError("a video of no frames: give one or more")
    check_size(height, width, space_factor)
    return video


def check_size(height: int, width: int, factor: int) -> None:
    """Raises `ValueError` unless both sides, in pixels, are whole latents."""
    for name, side in (("height", height), ("width", width)):
        if side < factor or side % factor:
            below = max(factor, side // factor * factor)
            raise ValueError(
                f"{name} {side} does not divide by {factor}: resize, crop or pad to "
                f"{below} or {below + factor}"
            )

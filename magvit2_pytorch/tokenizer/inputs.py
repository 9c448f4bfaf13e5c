"""Validation of videos, and the grid of flat codes."""

from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from magvit2_pytorch.functional import check_tensor
from magvit2_pytorch.types import Codes, Video


def validate_video(video: Tensor, channels: int, space_factor: int) -> Video:
    """Checked video `b c t h w`; raises `TypeError` or `ValueError`."""
    check_tensor(video, "frames")
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
            f"{num_channels} channels in shape {tuple(video.shape)}, but this model has "
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


def check_cond(cond: Tensor | None, dim: int | None) -> None:
    """Raises `ValueError` unless the condition is `b dim`, or none without."""
    if dim is None and cond is not None:
        raise ValueError("a condition was given, but no layer of this tokenizer uses it")
    if dim is not None and cond is None:
        raise ValueError(f"this tokenizer is conditional: give cond, b x {dim}")
    if cond is not None and (cond.ndim != 2 or cond.shape[1] != dim):
        shape = tuple(cond.shape)
        raise ValueError(f"cond has shape {shape}, but dim_cond is {dim}: give b x {dim}")


def unflatten_codes(
    codes: Int[Tensor, "b ..."],
    num_codebooks: int,
    grid: tuple[int, int, int] | None,
    default_size: tuple[int, int],
) -> Codes:
    """Codes `b t h w`, from flat codes `b n` if necessary.

    With several codebooks, the last axis is the codebook. Flat codes lie on `grid`, (latent
    frames, rows, columns); without one, on as many frames of `default_size`, (rows, columns), as
    they fill. Raises `ValueError` if they do not fit.
    """
    check_tensor(codes, "codes")
    axes = codes.ndim - (num_codebooks > 1)
    if axes == 4:
        return codes
    if axes != 2:
        raise ValueError(
            f"codes of shape {tuple(codes.shape)} for {num_codebooks} codebook(s): give "
            "b t h w or b n, with several codebooks as the last axis"
        )
    if grid is None:
        height, width = default_size
        grid = (codes.shape[1] // (height * width), height, width)
    time, height, width = grid
    if time < 1 or codes.shape[1] != time * height * width:
        raise ValueError(
            f"{codes.shape[1]} codes do not fill a grid of {time} x {height} x {width}: "
            "give grid=(latent frames, rows, columns)"
        )
    return rearrange(codes, "b (t h w) ... -> b t h w ...", t=time, h=height)

"""Resizing and padding of frames to fit a tokenizer's strides."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from magvit2_pytorch.data.clips import covering_size
from magvit2_pytorch.types import Video


def frame_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Height and width for a short side; None keeps the size."""
    if short_side is None:
        return height, width
    if short_side < 1:
        raise ValueError(f"size is {short_side}: the short side must have at least 1 pixel")
    return covering_size(height, width, (short_side, short_side))


def space_padding(height: int, width: int, space_factor: int) -> tuple[int, int]:
    """Rows below and columns right missing to multiples of `space_factor`."""
    return -height % space_factor, -width % space_factor


def pad_space(video: Video, space_factor: int) -> Float[Tensor, "b c t y x"]:
    """Repeats the last row and column up to multiples of `space_factor`."""
    below, right = space_padding(*video.shape[-2:], space_factor)
    if not below and not right:
        return video
    return pad(video, (0, right, 0, below, 0, 0), mode="replicate")

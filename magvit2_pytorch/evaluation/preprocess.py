"""Frames of any size and number, made to fit a tokenizer's strides, and cut back again."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from magvit2_pytorch.data.clips import covering_size
from magvit2_pytorch.types import Video


def frame_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Height and width with the short side at `short_side` pixels; None keeps them."""
    if short_side is None:
        return height, width
    if short_side < 1:
        raise ValueError(f"size is {short_side}: the short side in pixels, at least 1")
    return covering_size(height, width, (short_side, short_side))


def space_padding(height: int, width: int, space_factor: int) -> tuple[int, int]:
    """Rows below and columns to the right that are missing to the next multiples."""
    return -height % space_factor, -width % space_factor


def pad_space(video: Video, space_factor: int) -> Float[Tensor, "b c t y x"]:
    """Repeats the last row and column until height and width divide by `space_factor`."""
    below, right = space_padding(*video.shape[-2:], space_factor)
    if not below and not right:
        return video
    return pad(video, (0, right, 0, below, 0, 0), mode="replicate")

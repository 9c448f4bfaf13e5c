"""Flat sequences of codes, back on their grid."""

from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from magvit2_pytorch.types import Codes


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

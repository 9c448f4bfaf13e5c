"""Codes as a sequence model gives them, back on the grid that they come from."""

from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from magvit2_pytorch.types import Codes


def on_grid(
    codes: Int[Tensor, "b ..."],
    num_codebooks: int,
    grid: tuple[int, int, int] | None,
    default: tuple[int, int],
) -> Codes:
    """Codes `b t h w`, with a last axis for the codebook when there are several, or flat ones.

    Flat ones lie on `grid`, (latent frames, rows, columns); if not said, on as many frames of
    the `default` rows and columns as they fill. Raises `ValueError` where they do not fit.
    """
    axes = codes.ndim - (num_codebooks > 1)
    if axes == 4:
        return codes
    if axes != 2:
        raise ValueError(
            f"codes of shape {tuple(codes.shape)} for {num_codebooks} codebook(s): give "
            "b t h w or b n, with a last axis for the codebook when there are several"
        )
    if grid is None:
        height, width = default
        grid = (codes.shape[1] // (height * width), height, width)
    time, height, width = grid
    if time < 1 or codes.shape[1] != time * height * width:
        raise ValueError(
            f"{codes.shape[1]} codes do not fill a grid of {time} x {height} x {width}: "
            "give grid=(latent frames, rows, columns)"
        )
    return rearrange(codes, "b (t h w) ... -> b t h w ...", t=time, h=height)

"""What codes cost: bits per pixel, and how much smaller than raw video they are."""

from collections.abc import Sequence
from math import prod


def bits_per_pixel(
    bits_per_position: float, latent_grid: Sequence[int], video_grid: Sequence[int]
) -> float:
    """Bits of fixed-length code per pixel and frame of a clip; no entropy coding.

    Both grids are (frames, height, width). The first latent frame stands for one frame alone,
    so a short clip costs more per pixel than a long one.
    """
    for name, grid in (("latent_grid", latent_grid), ("video_grid", video_grid)):
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"{name} is {tuple(grid)}: give frames, height and width")
    return bits_per_position * prod(latent_grid) / prod(video_grid)


def compression_ratio(bits_per_pixel: float, channels: int = 3, bits_per_channel: int = 8) -> float:
    """How many times fewer bits than raw pixels: 24 bits per pixel unless said otherwise."""
    if bits_per_pixel <= 0:
        raise ValueError(f"{bits_per_pixel} bits per pixel: codes cost more than nothing")
    return channels * bits_per_channel / bits_per_pixel

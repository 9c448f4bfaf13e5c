"""Rate of codes: bits per pixel and compression ratio."""

from collections.abc import Sequence
from math import prod


def bits_per_pixel(
    bits_per_position: float, latent_grid: Sequence[int], video_grid: Sequence[int]
) -> float:
    """Bits per pixel of a clip's fixed-length codes, without entropy coding.

    Both grids are (frames, height, width). The first latent frame encodes only one video frame,
    so a short clip costs more per pixel than a long one.
    """
    for name, grid in (("latent_grid", latent_grid), ("video_grid", video_grid)):
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"{name} is {tuple(grid)}: give frames, height and width")
    return bits_per_position * prod(latent_grid) / prod(video_grid)


def compression_ratio(bits_per_pixel: float, channels: int = 3, bits_per_channel: int = 8) -> float:
    """Bits of raw pixels divided by bits of codes."""
    if bits_per_pixel <= 0:
        raise ValueError(f"bits_per_pixel is {bits_per_pixel}: give a number above 0")
    return channels * bits_per_channel / bits_per_pixel

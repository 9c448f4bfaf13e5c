"""Rotary positions along one or several axes. Source: RoFormer (arXiv 2104.09864)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Num
from torch import Tensor


def rotary_angles(
    num_positions: int, dim: int, like: Tensor, theta: float = 10_000.0
) -> Float[Tensor, "n f"]:
    """Angle of each position and frequency, in radians.

    `dim` channels have dim / 2 frequencies. On the device of `like`; in float32, or in float64 if
    `like` is.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    exponents = torch.arange(0, dim, 2, device=like.device, dtype=dtype) / dim
    positions = torch.arange(num_positions, device=like.device, dtype=dtype)
    return torch.outer(positions, theta**-exponents)


def axial_angles(height: int, width: int, dim: int, like: Tensor) -> Float[Tensor, "n f"]:
    """Angles of cells, half of the frequencies by row, half by column."""
    rows = rotary_angles(height, dim // 2, like)
    columns = rotary_angles(width, dim // 2, like)
    # Not repeat_interleave: torch exports it to ONNX wrongly if the width is dynamic.
    rows = rows[:, None].expand(-1, width, -1).flatten(0, 1)
    return torch.cat((rows, columns.repeat(height, 1)), dim=-1)


def rotate(
    x: Float[Tensor, "... n d"], angles: Float[Tensor, "... n f"]
) -> Float[Tensor, "... n d"]:
    """Rotates channel pairs i, i + d / 2 in the type of `angles`."""
    return turn(x, angles.cos(), angles.sin())


def turn(
    x: Float[Tensor, "... n d"], cos: Float[Tensor, "... n f"], sin: Float[Tensor, "... n f"]
) -> Float[Tensor, "... n d"]:
    """`rotate` by the cosines and sines of the angles."""
    real, imaginary = x.to(cos.dtype).chunk(2, dim=-1)
    rotated = torch.cat((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return rotated.to(x.dtype)


def axis_pairs(num_pairs: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Splits channel pairs over axes by weight; last axes get the rest."""
    counts = [num_pairs * weight // sum(weights) for weight in weights]
    for number in range(num_pairs - sum(counts)):
        counts[len(counts) - 1 - number % len(counts)] += 1
    return tuple(counts)


def position_angles(
    positions: Num[Tensor, "*b n a"],
    pairs: Sequence[int],
    theta: float,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*b n f"]:
    """Angles of positions along axes with so many channel pairs each.

    Positions may lie between cells and be as large as those of hours of video: angles are computed
    in float64, and given in `dtype` or at least float32. Frequencies of an axis fall from 1 to
    nearly 1 / `theta`.
    """
    angles = []
    for axis, count in enumerate(pairs):
        exponents = torch.arange(count, device=positions.device, dtype=torch.float64) / count
        angles.append(positions[..., axis, None].double() * theta**-exponents)
    # Whole turns would cost float32 its digits.
    turns = torch.cat(angles, dim=-1).remainder(2 * torch.pi)
    return turns.to(torch.promote_types(dtype, torch.float32))

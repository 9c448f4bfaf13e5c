"""Rotary position embeddings along one axis or two."""

import torch
from jaxtyping import Float
from torch import Tensor


def rotary_angles(
    num_positions: int, dim: int, like: Tensor, theta: float = 10_000.0
) -> Float[Tensor, "n f"]:
    """Angle of each position and frequency, in radians; `dim` channels have dim / 2 frequencies.

    On the device of `like`, in its type or float32, whichever is wider.
    Source: RoFormer (arXiv 2104.09864).
    """
    wide = dict(device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    exponents = torch.arange(0, dim, 2, **wide) / dim
    return torch.outer(torch.arange(num_positions, **wide), theta**-exponents)


def axial_angles(height: int, width: int, dim: int, like: Tensor) -> Float[Tensor, "n f"]:
    """Half the frequencies turn with the row, half with the column; n = height * width."""
    rows = rotary_angles(height, dim // 2, like)
    columns = rotary_angles(width, dim // 2, like)
    # Not repeat_interleave: to ONNX, torch translates that wrongly where the width is open.
    rows = rows[:, None].expand(-1, width, -1).flatten(0, 1)
    return torch.cat((rows, columns.repeat(height, 1)), dim=-1)


def rotate(x: Float[Tensor, "... n d"], angles: Float[Tensor, "n f"]) -> Float[Tensor, "... n d"]:
    """Turns each pair of channels (i, i + d / 2) by its angle, in the angles' precision."""
    cos, sin = angles.cos(), angles.sin()
    real, imaginary = x.to(angles.dtype).chunk(2, dim=-1)
    turned = torch.cat((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return turned.to(x.dtype)

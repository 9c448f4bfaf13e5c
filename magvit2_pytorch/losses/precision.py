"""What losses compute in."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is: half precision has no room for squares."""
    return x if x.dtype == torch.float64 else x.float()

"""Random colours of training clips."""

import random
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

CONTRAST = (0.7, 1.5)
SATURATION = (0.3, 2.0)
BRIGHTNESS = (-0.2, 0.2)
"""Ranges: of factors, equally likely on a logarithmic scale, and of what is then added."""

LUMA = (0.299, 0.587, 0.114)
"""Rec. 601."""


class ColorChange(NamedTuple):
    """A change of all pixels alike: a matrix over channels, and a number that is added."""

    matrix: Float[Tensor, "c c"]
    brightness: float

    def __call__(self, clip: Float[Tensor, "d ..."]) -> Float[Tensor, "d ..."]:
        """The clip in these colours, clamped to [-1, 1]; opacity, a fourth channel, stays."""
        number = len(self.matrix)
        colors = torch.einsum("ij,j...->i...", self.matrix, clip[:number])
        colors = colors.add_(self.brightness).clamp_(-1, 1)
        return torch.cat((colors, clip[number:]))


def choose_colors(channels: int, rng: random.Random) -> ColorChange:
    """Random contrast, saturation and brightness, and a random order of red, green and blue."""
    contrast, saturation = (
        low * (high / low) ** rng.random() for low, high in (CONTRAST, SATURATION)
    )
    brightness = rng.uniform(*BRIGHTNESS)
    if channels == 1:
        return ColorChange(torch.tensor([[contrast]]), brightness)
    matrix = saturation * torch.eye(3) + (1 - saturation) * torch.tensor(LUMA)
    return ColorChange(contrast * matrix[rng.sample(range(3), 3)], brightness)

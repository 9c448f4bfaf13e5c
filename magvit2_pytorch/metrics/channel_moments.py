"""Mean and standard deviation of each channel, over as many values as one likes."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


class Moments(NamedTuple):
    """What all values together say, in float64."""

    num_values: int
    """Values in each channel."""
    mean: Float[Tensor, " c"]
    std: Float[Tensor, " c"]
    """Root of the mean squared distance from the mean, over all values (not one less)."""


class ChannelMoments:
    """`update` with values, `merge` with others, `compute` the moments so far.

    Each part brings its mean and its sum of squared distances from it, and two parts make one by
    Chan, Golub and LeVeque (Stanford STAN-CS-79-773, eq. 2.1). The mean of squares less the square
    of the mean would lose a spread that is small beside the mean. On the CPU, in float64.
    """

    def __init__(self):
        self.num_values = 0
        # Both None before the first value.
        self._mean: Float[Tensor, " c"] | None = None
        self._squares: Float[Tensor, " c"] | None = None

    @torch.no_grad()
    def update(self, values: Float[Tensor, "b c *positions"]) -> None:
        """Values of any shape that has channels for its second axis."""
        # Moved before they are made wide: not every device has float64.
        channels = values.detach().cpu().double().transpose(0, 1).flatten(1)
        if not channels.numel():
            return
        part = ChannelMoments()
        part.num_values = channels.shape[1]
        part._mean = channels.mean(dim=1)
        part._squares = (channels - part._mean[:, None]).square().sum(dim=1)
        self.merge(part)

    def merge(self, other: "ChannelMoments") -> None:
        """Adds what another one has seen, which stays as it was."""
        if not other.num_values:
            return
        if not self.num_values:
            self.num_values = other.num_values
            self._mean, self._squares = other._mean.clone(), other._squares.clone()
            return
        if len(self._mean) != len(other._mean):
            raise ValueError(
                f"moments of {len(other._mean)} and of {len(self._mean)} channels do not add up"
            )
        total = self.num_values + other.num_values
        distance, share = other._mean - self._mean, other.num_values / total
        self._mean += distance * share
        self._squares += other._squares + distance.square() * self.num_values * share
        self.num_values = total

    def gathered(self) -> "ChannelMoments":
        """What all processes saw, equal to the bit in each; a collective that all must call."""
        everyones: list[ChannelMoments | None] = [self]
        if dist.is_available() and dist.is_initialized():
            # As objects: a process that saw nothing does not know how many channels there are.
            everyones = [None] * dist.get_world_size()
            dist.all_gather_object(everyones, self)
        total = ChannelMoments()
        for part in everyones:
            total.merge(part)
        return total

    def compute(self) -> Moments:
        """The moments of all values so far; `ValueError` before the first."""
        if not self.num_values:
            raise ValueError("no values were seen yet: update with some first")
        std = (self._squares / self.num_values).sqrt()
        return Moments(self.num_values, self._mean.clone(), std)

"""Streaming mean and standard deviation of each channel."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


class Moments(NamedTuple):
    """Moments of each channel, in float64."""

    num_values: int
    """Number of values in each channel."""
    mean: Float[Tensor, " c"]
    std: Float[Tensor, " c"]
    """Standard deviation with divisor n, not n - 1."""


class ChannelMoments:
    """Accumulator of moments: `update`, `merge`, then `compute`.

    Each batch gives a mean and a sum of squared deviations from it; two such pairs are merged as
    in Chan, Golub and LeVeque (Stanford STAN-CS-79-773, eq. 2.1). The mean of squares minus the
    squared mean would lose a deviation that is small compared with the mean. Everything is kept
    on the CPU in float64.
    """

    def __init__(self):
        self.num_values = 0
        # Both are None before the first value.
        self._mean: Float[Tensor, " c"] | None = None
        self._squares: Float[Tensor, " c"] | None = None

    @torch.no_grad()
    def update(self, values: Float[Tensor, "b c *positions"]) -> None:
        """Add values of any shape whose second axis is the channels."""
        # Move first, convert second: not every device supports float64.
        channels = values.detach().cpu().double().transpose(0, 1).flatten(1)
        if not channels.numel():
            return
        part = ChannelMoments()
        part.num_values = channels.shape[1]
        part._mean = channels.mean(dim=1)
        part._squares = (channels - part._mean[:, None]).square().sum(dim=1)
        self.merge(part)

    def merge(self, other: "ChannelMoments") -> None:
        """Add the values of another accumulator, which stays unchanged."""
        if not other.num_values:
            return
        if not self.num_values:
            self.num_values = other.num_values
            self._mean, self._squares = other._mean.clone(), other._squares.clone()
            return
        if len(self._mean) != len(other._mean):
            raise ValueError(
                f"moments of {len(other._mean)} and of {len(self._mean)} channels cannot be merged"
            )
        total = self.num_values + other.num_values
        difference, share = other._mean - self._mean, other.num_values / total
        self._mean += difference * share
        self._squares += other._squares + difference.square() * self.num_values * share
        self.num_values = total

    def gathered(self) -> "ChannelMoments":
        """Moments merged over all processes, bitwise equal in each.

        A collective: all processes must call it.
        """
        parts: list[ChannelMoments | None] = [self]
        if dist.is_available() and dist.is_initialized():
            # As objects: a process without values does not know the number of channels.
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self)
        total = ChannelMoments()
        for part in parts:
            total.merge(part)
        return total

    def compute(self) -> Moments:
        """Moments of all values so far; raises `ValueError` before the first."""
        if not self.num_values:
            raise ValueError("there are no values yet: call update first")
        std = (self._squares / self.num_values).sqrt()
        return Moments(self.num_values, self._mean.clone(), std)

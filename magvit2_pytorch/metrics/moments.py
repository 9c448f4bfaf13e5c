"""Mean and spread of values that come in parts."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.runtime import num_processes


class MomentSums(NamedTuple):
    """Number and mean of values, and the sum of their squared deviations from it.

    For vectors, `squares` may also be the scatter matrix. The mean of squares minus the squared
    mean would lose a deviation that is small compared with the mean.
    """

    count: int
    mean: Float[Tensor, "*c"]
    squares: Float[Tensor, "*s"]

    @classmethod
    def empty(cls) -> "MomentSums":
        """No values yet, of any shape and device."""
        return cls(0, torch.zeros(()), torch.zeros(()))

    def merged(self, other: "MomentSums") -> "MomentSums":
        """Sums of both parts.

        Source: Chan, Golub and LeVeque, Stanford STAN-CS-79-773, equation 2.1.
        """
        if not other.count:
            return self
        total = self.count + other.count
        difference, share = other.mean - self.mean, other.count / total
        is_scatter = other.squares.ndim > other.mean.ndim
        square = torch.outer(difference, difference) if is_scatter else difference.square()
        squares = self.squares + other.squares + square * (self.count * share)
        return MomentSums(total, self.mean + difference * share, squares)


class Moments(NamedTuple):
    """Moments of each channel, in float64."""

    num_values: int
    """Number of values in each channel."""
    mean: Float[Tensor, " c"]
    std: Float[Tensor, " c"]
    """Standard deviation with divisor n, not n - 1."""


class ChannelMoments:
    """Accumulator of moments: `update`, `merge`, then `compute`.

    Everything is kept on the CPU in float64.
    """

    def __init__(self):
        self.sums = MomentSums.empty()

    @torch.no_grad()
    def update(self, values: Float[Tensor, "b c *positions"]) -> None:
        """Add values of any shape whose second axis is the channels."""
        # Move first, convert second: not every device supports float64.
        channels = values.detach().cpu().double().transpose(0, 1).flatten(1)
        if channels.numel():
            mean = channels.mean(dim=1)
            squares = (channels - mean[:, None]).square().sum(dim=1)
            self._add(MomentSums(channels.shape[1], mean, squares))

    def merge(self, other: "ChannelMoments") -> None:
        """Add the values of another accumulator, which stays unchanged."""
        self._add(other.sums)

    def _add(self, part: MomentSums) -> None:
        if self.sums.count and part.count and len(part.mean) != len(self.sums.mean):
            raise ValueError(
                f"moments of {len(part.mean)} and of {len(self.sums.mean)} channels cannot be "
                "merged"
            )
        self.sums = self.sums.merged(part)

    def gathered(self) -> "ChannelMoments":
        """Moments merged over all processes, bitwise equal in each.

        A collective: all processes must call it.
        """
        parts: list[ChannelMoments | None] = [self]
        if num_processes() > 1:
            # As objects: a process without values does not know the number of channels.
            parts = [None] * num_processes()
            dist.all_gather_object(parts, self)
        total = ChannelMoments()
        for part in parts:
            total.merge(part)
        return total

    def compute(self) -> Moments:
        """Moments of all values so far; raises `ValueError` before the first."""
        if not self.sums.count:
            raise ValueError("there are no values yet: call update first")
        std = (self.sums.squares / self.sums.count).sqrt()
        return Moments(self.sums.count, self.sums.mean.clone(), std)

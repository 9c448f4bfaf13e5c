"""Moments of features in one pass, and the Frechet distance between two sets of them."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.runtime import num_processes


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
        if not self.num_values:
            raise ValueError("there are no values yet: call update first")
        std = (self._squares / self.num_values).sqrt()
        return Moments(self.num_values, self._mean.clone(), std)


Covariance = Float[Tensor, "d d"]


class GaussianMoments:
    """Accumulator of mean and covariance: `update` and `merge`.

    Each batch gives a mean and the scatter matrix around it; two such pairs are merged as in
    `ChannelMoments`. Sums of raw products would lose a deviation that is small compared with the
    mean. Everything is kept on the CPU in float64: d^2 numbers for any number of vectors.
    """

    def __init__(self, dim: int):
        self.num_vectors = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @property
    def dim(self) -> int:
        return len(self.mean)

    @torch.no_grad()
    def update(self, vectors: Float[Tensor, "n d"]) -> None:
        """Add vectors; raises `ValueError` for another length or non-finite values."""
        if vectors.shape[1] != self.dim:
            raise ValueError(f"features have {vectors.shape[1]} numbers instead of {self.dim}")
        if not len(vectors):
            return
        vectors = vectors.detach().cpu().double()
        if not vectors.isfinite().all():
            raise ValueError("features hold values that are not finite")
        part = GaussianMoments(self.dim)
        part.num_vectors, part.mean = len(vectors), vectors.mean(dim=0)
        centered = vectors - part.mean
        part.scatter = centered.T @ centered
        self.merge(part)

    def merge(self, other: "GaussianMoments") -> None:
        """Add the vectors of another accumulator, which stays unchanged."""
        if other.dim != self.dim:
            raise ValueError(f"moments of {other.dim} and of {self.dim} numbers cannot be merged")
        total = self.num_vectors + other.num_vectors
        if not total:
            return
        difference, share = other.mean - self.mean, other.num_vectors / total
        self.mean = self.mean + difference * share
        outer = torch.outer(difference, difference) * (self.num_vectors * share)
        self.scatter = self.scatter + other.scatter + outer
        self.num_vectors = total

    def covariance(self, unbiased: bool = True) -> Covariance:
        """Scatter divided by n - 1, or n; raises `ValueError` for 0."""
        divisor = self.num_vectors - unbiased
        if divisor < 1:
            raise ValueError(f"{self.num_vectors} vectors have no covariance: give two or more")
        return self.scatter / divisor


class FrechetDistance:
    """Distance between features of reconstructions and originals: `update`, then `compute`.

    `unbiased` divides covariances by n - 1, as tensorflow-gan does for FVD; StyleGAN-V divides by
    n. With no more vectors than dimensions the covariances are singular (`is_rank_deficient`), and
    the distance depends more on the number of vectors than on their similarity.
    """

    def __init__(self, dim: int, unbiased: bool = True):
        self.recon, self.real = GaussianMoments(dim), GaussianMoments(dim)
        self.unbiased = unbiased

    @property
    def num_vectors(self) -> int:
        """Number of vectors of the smaller set."""
        return min(self.recon.num_vectors, self.real.num_vectors)

    @property
    def is_rank_deficient(self) -> bool:
        return self.num_vectors <= self.real.dim

    def update(self, recon: Float[Tensor, "n d"], real: Float[Tensor, "m d"]) -> None:
        """Add features; adds none if `GaussianMoments.update` raises for either set."""
        parts = GaussianMoments(self.recon.dim), GaussianMoments(self.real.dim)
        for part, vectors in zip(parts, (recon, real), strict=True):
            part.update(vectors)
        self.recon.merge(parts[0])
        self.real.merge(parts[1])

    def merge(self, other: "FrechetDistance") -> None:
        """Add the vectors of another accumulator, which stays unchanged."""
        self.recon.merge(other.recon)
        self.real.merge(other.real)

    def compute(self) -> float:
        """The distance so far; raises `ValueError` before the second vector."""
        covariances = (x.covariance(self.unbiased) for x in (self.recon, self.real))
        return frechet_distance(self.recon.mean, self.real.mean, *covariances)

    def state_dict(self) -> dict[str, Tensor]:
        """All sums, from which `load_state_dict` continues bit for bit."""
        return {
            f"{name}.{key}": value
            for name, moments in (("recon", self.recon), ("real", self.real))
            for key, value in (
                ("num_vectors", torch.tensor(moments.num_vectors)),
                ("mean", moments.mean),
                ("scatter", moments.scatter),
            )
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace all sums."""
        for name, moments in (("recon", self.recon), ("real", self.real)):
            moments.num_vectors = int(state[f"{name}.num_vectors"])
            moments.mean, moments.scatter = state[f"{name}.mean"], state[f"{name}.scatter"]


def frechet_distance(
    mean: Float[Tensor, " d"],
    other_mean: Float[Tensor, " d"],
    covariance: Covariance,
    other_covariance: Covariance,
) -> float:
    """Fréchet distance of two Gaussians.

    |m - n|^2 + tr(A + B - 2 (A B)^(1/2)) for means m, n and covariances A, B. The trace of the root
    is that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric: its eigenvalues are real and not
    negative, even for singular A and B. Eigenvalues within rounding of 0 count as 0, since the root
    of a rounding error is not small. Source: Dowson and Landau, 1982, equation 4.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    root = (vectors * _zero_if_rounding(values).sqrt()) @ vectors.T
    product = root @ other_covariance.double() @ root
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    root_trace = _zero_if_rounding(eigenvalues).sqrt().sum()
    squared_distance = (mean.double() - other_mean.double()).square().sum()
    traces = covariance.trace() + other_covariance.trace()
    return max(float(squared_distance + traces - 2 * root_trace), 0.0)


def _zero_if_rounding(eigenvalues: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    bound = eigenvalues.abs().max() * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    return torch.where(eigenvalues > bound, eigenvalues, 0.0)

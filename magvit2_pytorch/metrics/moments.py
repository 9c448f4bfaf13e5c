"""Mean and spread of values in parts, and the Fréchet distance."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.runtime import num_processes


class MomentSums(NamedTuple):
    """Number and mean of values, and sum of their squared deviations.

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
    """Accumulator of moments: `update`, `merge`, then `compute`; on the CPU in float64."""

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
        """Moments over all processes, equal in each; all must call it."""
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


Covariance = Float[Tensor, "d d"]


class FrechetDistance:
    """Distance between features of reconstructions and originals: `update`, then `compute`.

    `unbiased` divides covariances by n - 1, as tensorflow-gan does for FVD; StyleGAN-V divides by
    n. With no more vectors than dimensions the covariances are singular (`is_rank_deficient`), and
    the distance depends on the number of vectors. Sums are kept on the CPU in float64.
    """

    def __init__(self, dim: int, unbiased: bool = True):
        self.dim, self.unbiased = dim, unbiased
        zeros = torch.zeros(dim, dim, dtype=torch.float64)
        self.recon = self.real = MomentSums(0, zeros[0], zeros)

    @property
    def num_vectors(self) -> int:
        """Number of vectors of the smaller set."""
        return min(self.recon.count, self.real.count)

    @property
    def is_rank_deficient(self) -> bool:
        return self.num_vectors <= self.dim

    @torch.no_grad()
    def update(self, recon: Float[Tensor, "n d"], real: Float[Tensor, "m d"]) -> None:
        """Adds features; `ValueError` if their length differs or values are not finite."""
        recon_sums, real_sums = self._sums_of(recon), self._sums_of(real)
        self.recon, self.real = self.recon.merged(recon_sums), self.real.merged(real_sums)

    def compute(self) -> float:
        """The distance so far; raises `ValueError` before the second vector."""
        covariances = (covariance(x, self.unbiased) for x in (self.recon, self.real))
        return frechet_distance(self.recon.mean, self.real.mean, *covariances)

    def state_dict(self) -> dict[str, Tensor]:
        """All sums, from which `load_state_dict` continues bit for bit."""
        return {
            f"{name}.{key}": torch.as_tensor(value)
            for name, sums in (("recon", self.recon), ("real", self.real))
            for key, value in sums._asdict().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace all sums."""
        self.recon, self.real = (
            MomentSums(int(state[f"{x}.count"]), state[f"{x}.mean"], state[f"{x}.squares"])
            for x in ("recon", "real")
        )

    def _sums_of(self, vectors: Float[Tensor, "n d"]) -> MomentSums:
        if vectors.shape[1] != self.dim:
            raise ValueError(f"features have {vectors.shape[1]} numbers instead of {self.dim}")
        vectors = vectors.detach().cpu().double()
        if not vectors.isfinite().all():
            raise ValueError("features hold values that are not finite")
        if not len(vectors):
            return MomentSums.empty()
        mean = vectors.mean(dim=0)
        centered = vectors - mean
        return MomentSums(len(vectors), mean, centered.T @ centered)


def covariance(sums: MomentSums, unbiased: bool = True) -> Covariance:
    """Scatter divided by n - 1, or n; raises `ValueError` for 0."""
    divisor = sums.count - unbiased
    if divisor < 1:
        raise ValueError(f"{sums.count} vectors have no covariance: give two or more")
    return sums.squares / divisor


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

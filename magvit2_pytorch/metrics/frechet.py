"""Frechet distance between two sets of features, as two Gaussians, over as many as one likes."""

import torch
from jaxtyping import Float
from torch import Tensor

Covariance = Float[Tensor, "d d"]


class GaussianMoments:
    """Mean and covariance of vectors: `update` with some, `merge` with others.

    Each part brings its mean and its scatter around it, and two parts make one by Chan, Golub and
    LeVeque, as in `ChannelMoments`; sums of raw products would lose a spread that is small beside
    the mean. On the CPU, in float64: d^2 numbers, however many vectors there are.
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
        """Adds vectors; `ValueError` where they have another length or are not finite."""
        if vectors.shape[1] != self.dim:
            raise ValueError(f"features of {vectors.shape[1]} numbers, and not of {self.dim}")
        if not len(vectors):
            return
        vectors = vectors.detach().cpu().double()
        if not vectors.isfinite().all():
            raise ValueError("features hold values that are not numbers")
        part = GaussianMoments(self.dim)
        part.num_vectors, part.mean = len(vectors), vectors.mean(dim=0)
        centered = vectors - part.mean
        part.scatter = centered.T @ centered
        self.merge(part)

    def merge(self, other: "GaussianMoments") -> None:
        """Adds what another one has seen, which stays as it was."""
        if other.dim != self.dim:
            raise ValueError(f"moments of {other.dim} and of {self.dim} numbers do not add up")
        total = self.num_vectors + other.num_vectors
        if not total:
            return
        distance, share = other.mean - self.mean, other.num_vectors / total
        self.mean = self.mean + distance * share
        outer = torch.outer(distance, distance) * (self.num_vectors * share)
        self.scatter = self.scatter + other.scatter + outer
        self.num_vectors = total

    def covariance(self, unbiased: bool = True) -> Covariance:
        """Scatter over n - 1, or over n; `ValueError` where that is nothing."""
        divisor = self.num_vectors - unbiased
        if divisor < 1:
            raise ValueError(f"{self.num_vectors} vectors have no covariance: give two or more")
        return self.scatter / divisor


class FrechetDistance:
    """Between features of reconstructions and of originals: `update` with both, then `compute`.

    `unbiased` divides covariances by n - 1, as tensorflow-gan does for FVD; StyleGAN-V divides by
    n. Where there are no more vectors than they have numbers, covariances lack directions
    (`is_rank_deficient`), and the distance says more of how many there are than of how alike.
    """

    def __init__(self, dim: int, unbiased: bool = True):
        self.recon, self.real = GaussianMoments(dim), GaussianMoments(dim)
        self.unbiased = unbiased

    @property
    def num_vectors(self) -> int:
        """Of the smaller side."""
        return min(self.recon.num_vectors, self.real.num_vectors)

    @property
    def is_rank_deficient(self) -> bool:
        return self.num_vectors <= self.real.dim

    def update(self, recon: Float[Tensor, "n d"], real: Float[Tensor, "m d"]) -> None:
        """Adds features; raises as `GaussianMoments.update` does, and then adds none."""
        parts = GaussianMoments(self.recon.dim), GaussianMoments(self.real.dim)
        for part, vectors in zip(parts, (recon, real), strict=True):
            part.update(vectors)
        self.recon.merge(parts[0])
        self.real.merge(parts[1])

    def merge(self, other: "FrechetDistance") -> None:
        """Adds what another one has seen, which stays as it was."""
        self.recon.merge(other.recon)
        self.real.merge(other.real)

    def compute(self) -> float:
        """The distance so far, 0 or more; `ValueError` before the second vector."""
        covariances = (x.covariance(self.unbiased) for x in (self.recon, self.real))
        return frechet_distance(self.recon.mean, self.real.mean, *covariances)

    def state_dict(self) -> dict[str, Tensor]:
        """All that was seen; `load_state_dict` of another one goes on from it to the bit."""
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
        """Replaces what was seen."""
        for name, moments in (("recon", self.recon), ("real", self.real)):
            moments.num_vectors = int(state[f"{name}.num_vectors"])
            moments.mean, moments.scatter = state[f"{name}.mean"], state[f"{name}.scatter"]


def frechet_distance(
    mean: Float[Tensor, " d"],
    other_mean: Float[Tensor, " d"],
    covariance: Covariance,
    other_covariance: Covariance,
) -> float:
    """|m - n|^2 + tr(A + B - 2 (A B)^(1/2)) of Gaussians with means m, n and covariances A, B.

    The root's trace is that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric, so that its
    eigenvalues are real and not negative however few vectors A and B came from. Those within
    rounding of 0 are taken for 0, since the root of a rounding error is not small. Source: Dowson
    and Landau, 1982, equation 4.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    root = (vectors * _without_rounding(values).sqrt()) @ vectors.T
    product = root @ other_covariance.double() @ root
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    root_trace = _without_rounding(eigenvalues).sqrt().sum()
    apart = (mean.double() - other_mean.double()).square().sum()
    distance = apart + covariance.trace() + other_covariance.trace() - 2 * root_trace
    return max(float(distance), 0.0)


def _without_rounding(eigenvalues: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    bound = eigenvalues.abs().max() * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    return torch.where(eigenvalues > bound, eigenvalues, 0.0)

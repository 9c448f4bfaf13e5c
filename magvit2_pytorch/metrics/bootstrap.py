"""Bootstrap confidence intervals of a mean over clips."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

LEVEL = 0.95
NUM_RESAMPLES = 2000
MAX_DRAWS = 2**20
"""Groups drawn at a time: 8 MB. The number changes no result."""


class Interval(NamedTuple):
    """Bounds of a percentile interval."""

    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float] | Float[np.ndarray, " n"],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval | None:
    """Percentile interval of the mean of `values` at confidence `level`.

    Each resample draws whole groups, such as the clips of one video, with replacement, and the
    interval lies between percentiles of the resampled means. It is too narrow for a handful of
    groups, and None for fewer than two. Source: Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a number between 0 and 1")
    sample = np.asarray(values, np.float64)
    if not np.isfinite(sample).all():
        raise ValueError("some values are not finite: leave them out")
    names = range(len(sample)) if groups is None else groups
    group_indices: dict[Hashable, int] = {}
    group_of = [group_indices.setdefault(name, len(group_indices)) for name in names]
    if len(group_of) != len(sample):
        raise ValueError(f"{len(group_of)} groups were given for {len(sample)} values")
    num_groups = len(group_indices)
    if num_groups < 2:
        return None
    sums, counts = np.bincount(group_of, sample), np.bincount(group_of)
    rng, means = np.random.default_rng(seed), []
    num_left, num_together = num_resamples, max(MAX_DRAWS // num_groups, 1)
    while num_left > 0:
        resamples = rng.integers(num_groups, size=(min(num_left, num_together), num_groups))
        means.append(sums[resamples].sum(axis=1) / counts[resamples].sum(axis=1))
        num_left -= num_together
    low, high = np.quantile(np.concatenate(means), ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(low), float(high))

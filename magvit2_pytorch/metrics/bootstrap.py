"""How sure a mean over clips is: intervals by drawing the sample again and again."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

LEVEL = 0.95
NUM_RESAMPLES = 2000


class Interval(NamedTuple):
    """The bounds of a percentile interval."""

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
    """Where the mean of `values` would lie for other samples like this one, at `level`.

    Values of one group, such as clips of one video, are alike, and more of them say little more:
    whole groups are drawn, with replacement, as many as there are. None where there are fewer than
    two groups. Percentiles of the means that were drawn: too narrow for a handful of groups. The
    same values and seed give the same interval. Source: Efron and Tibshirani, An Introduction to
    the Bootstrap, 1993, chapter 13.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: it lies between 0 and 1")
    sample = np.asarray(values, np.float64)
    if not np.isfinite(sample).all():
        raise ValueError("a mean with infinite values has no interval: leave them out")
    names = range(len(sample)) if groups is None else groups
    places: dict[Hashable, int] = {}
    member_of = [places.setdefault(name, len(places)) for name in names]
    if len(member_of) != len(sample):
        raise ValueError(f"{len(member_of)} groups were given for {len(sample)} values")
    if len(places) < 2:
        return None
    sums = np.bincount(member_of, sample)
    counts = np.bincount(member_of)
    rng = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    for number in range(num_resamples):
        drawn = rng.integers(len(places), size=len(places))
        means[number] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(low), float(high))

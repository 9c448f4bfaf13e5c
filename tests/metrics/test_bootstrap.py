"""Intervals that hold the mean as often as they say."""

import numpy as np
import pytest

from magvit2_pytorch.metrics.bootstrap import bootstrap_interval


def held(samples, level, groups=None):
    intervals = [
        bootstrap_interval(sample, groups, level=level, num_resamples=400) for sample in samples
    ]
    return np.mean([low <= 0 <= high for low, high in intervals])


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_coverage_is_the_level(level):
    samples = np.random.default_rng(0).normal(size=(400, 40))
    # Percentiles of a sample of 40 are a little narrow; 400 trials leave 0.02 to chance.
    assert level - 0.06 < held(samples, level) < level + 0.04


def test_clips_of_one_video_are_no_independent_clips():
    rng = np.random.default_rng(1)
    of_videos = rng.normal(size=(200, 30))
    clips = np.repeat(of_videos, 8, axis=1)
    groups = np.repeat(np.arange(30), 8).tolist()
    assert held(clips, 0.95, groups) > 0.88
    assert held(clips, 0.95) < 0.6
    one = bootstrap_interval(clips[0], groups, seed=3)
    assert one == pytest.approx(bootstrap_interval(of_videos[0], seed=3), abs=1e-12)


def test_it_is_near_the_normal_interval():
    sample = np.random.default_rng(2).normal(5, 2, size=1000)
    low, high = bootstrap_interval(sample)
    error = 1.96 * sample.std() / 1000**0.5
    assert (low, high) == pytest.approx((sample.mean() - error, sample.mean() + error), abs=0.02)


def test_groups_of_different_sizes_weigh_by_their_clips():
    """Two groups: only four draws, of which one mean is that of all clips."""
    low, high = bootstrap_interval([0.0, 3.0, 3.0], ["a", "b", "b"], level=0.999)
    assert (low, high) == (0, 3)
    low, high = bootstrap_interval([0.0, 3.0, 3.0], ["a", "b", "b"], level=0.01)
    assert (low, high) == (2, 2)


def test_the_seed_alone_decides():
    values = list(np.random.default_rng(3).normal(size=9))
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)
    assert bootstrap_interval([2.0] * 5) == (2, 2)


def test_one_group_has_no_interval_and_mistakes_are_said():
    assert bootstrap_interval([1.0]) is None
    assert bootstrap_interval([1.0, 2.0, 3.0], ["a"] * 3) is None
    with pytest.raises(ValueError, match="leave them out"):
        bootstrap_interval([1.0, float("inf")])
    with pytest.raises(ValueError, match="2 groups were given for 3"):
        bootstrap_interval([1.0, 2.0, 3.0], ["a", "b"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_interval([1.0, 2.0], level=95.0)

from collections import Counter
from itertools import combinations

import pytest
import torch

from magvit2_pytorch.discriminators.discriminator import pick_consecutive_frames, pick_frames

MANY = 12000


def generator():
    return torch.Generator().manual_seed(7)


def assert_uniform(picks, expected):
    """Each of the legal picks, and about equally often (five standard deviations)."""
    counts = Counter(map(tuple, picks.tolist()))
    assert set(counts) == set(expected)
    share = len(picks) / len(expected)
    assert all(abs(count - share) < 5 * share**0.5 for count in counts.values())


@pytest.mark.parametrize(("length", "num"), [(5, 1), (5, 2), (5, 4), (4, 4), (3, 7), (1, 1)])
def test_frames_are_all_sets_alike(length, num):
    picks = pick_frames(length, num, MANY, generator())
    assert_uniform(picks, list(combinations(range(length), min(num, length))))


@pytest.mark.parametrize("length", [1, 2, 4, 5, 8, 9, 17, 18])
@pytest.mark.parametrize(("num_frames", "stride"), [(1, 1), (5, 1), (5, 2), (3, 4), (2, 17)])
def test_runs_are_all_starts_alike_and_as_long_as_fits(length, num_frames, stride):
    picks = pick_consecutive_frames(length, num_frames, stride, MANY, generator())
    fits = max(n for n in range(1, num_frames + 1) if (n - 1) * stride < length)
    runs = [tuple(range(start, start + fits * stride, stride)) for start in range(length)]
    assert_uniform(picks, [run for run in runs if run[-1] < length])


def test_a_generator_repeats_itself():
    for pick in (
        lambda generator: pick_frames(17, 3, 8, generator),
        lambda generator: pick_consecutive_frames(17, 3, 2, 8, generator),
    ):
        first, again = generator(), generator()
        assert torch.equal(pick(first), pick(again))
        assert not torch.equal(pick(first), pick(first))


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="num is 0: give at least 1"):
        pick_frames(5, 0, 1)
    with pytest.raises(ValueError, match="stride is -1"):
        pick_consecutive_frames(5, 2, -1, 1)
    with pytest.raises(ValueError, match="num_frames_in_video is 0"):
        pick_consecutive_frames(0, 2, 1, 1)
    assert pick_frames(5, 1, 0).shape == (0, 1)

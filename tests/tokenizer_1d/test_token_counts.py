"""Numbers of tokens found by quality, and divided among videos."""

import itertools

import pytest

from magvit2_pytorch.tokenizer_1d.token_counts import (
    count_steps,
    divide_tokens,
    parse_target,
    smallest_counts,
)
from tests.tokenizer_1d.narrow import narrow, random_clip


def test_steps_grow_by_the_root_of_two():
    assert count_steps(8, 128) == [8, 11, 16, 23, 32, 45, 64, 91, 128]
    assert count_steps(8, 5) == [5]
    assert count_steps(1, 3)[-1] == 3


def test_targets():
    assert parse_target("psnr:20").max_error == pytest.approx(0.04)
    assert parse_target("mse:0.003").max_error == 0.003
    for wrong in ("psnr", "psnr:x", "psnr:-1", "mse:nan", "28"):
        with pytest.raises(ValueError, match="psnr:28"):
            parse_target(wrong)


@pytest.mark.parametrize("errors", [[9, 5, 3, 2, 1], [9, 2, 5, 1, 4]])
def test_the_smallest_count_is_found(errors):
    counts = [8, 11, 16, 23, 32]
    measured = dict(zip(counts, errors, strict=True))
    before = None
    for limit in (0.5, 1, 2.5, 4.5, 10):
        tried = set()

        def measure(asked, tried=tried):
            tried.update(asked)
            return [measured[count] for count in asked]

        (count,) = smallest_counts([counts], measure, limit)
        if count != counts[-1]:
            assert measured[count] <= limit
        if count != counts[0]:
            fewer = counts[counts.index(count) - 1]
            assert fewer in tried
            assert measured[fewer] > limit
        assert before is None or count <= before
        before = count


def test_videos_are_searched_side_by_side():
    counts = [[1, 2, 4, 8], [3], [2, 4]]
    found = smallest_counts(counts, lambda asked: [1 / count for count in asked], 0.26)
    assert found == [4, 3, 4]


def test_tokens_are_divided_like_the_best_of_all_divisions():
    counts = [[1, 2, 4, 8]] * 3
    errors = [[80, 40, 20, 10], [9, 8, 7, 6], [40, 30, 10, 5]]
    for total in range(3, 25):
        chosen = divide_tokens(counts, errors, total)
        assert sum(chosen) <= total
        sums = {
            choice: sum(e[counts[0].index(c)] for e, c in zip(errors, choice, strict=True))
            for choice in itertools.product(counts[0], repeat=3)
            if sum(choice) <= total
        }
        # Greedy choice of whole steps is at most one step away from the best.
        assert sums[tuple(chosen)] <= min(sums.values()) + 40
        assert sums[tuple(chosen)] <= sums.get((total // 3,) * 3, float("inf"))
    assert divide_tokens(counts, errors, 24) == [8, 8, 8]
    with pytest.raises(ValueError, match="need 3 tokens"):
        divide_tokens(counts, errors, 2)


def test_quality_decides_the_count():
    tokenizer = narrow()
    videos = [random_clip(8, 32, 32), random_clip(8, 32, 32) * 0.05, random_clip(1, 8, 8)]
    codes = tokenizer.tokenize(videos, "mse:0.3")
    longest = tokenizer.tokenize(videos)
    for few, many in zip(codes, longest, strict=True):
        assert few.tolist() == many[: len(few)].tolist()
    assert len(codes[0]) == 16
    assert len(codes[2]) == 1
    counts = tokenizer.allocate(videos, 24)
    assert sum(counts) <= 24
    assert counts[2] == 1
    assert min(counts[:2]) >= 2
    with pytest.raises(ValueError, match="blocks have one number"):
        narrow("blocks").tokenize(videos, "psnr:20")

"""Moments against numpy's over all values at once."""

import numpy as np
import pytest
import torch

from magvit2_pytorch.metrics.moments import ChannelMoments

SHAPES = [(2, 3, 4, 5, 5), (1, 3, 1, 2, 7), (3, 3), (1, 3, 100), (0, 3, 4)]


def parts_of(mean=0.0, std=1.0, shapes=SHAPES):
    channel = torch.arange(3.0, dtype=torch.float64)
    return [
        torch.randn(shape, dtype=torch.float64) * std
        + (mean + channel).view(1, 3, *[1] * (len(shape) - 2))
        for shape in shapes
    ]


def seen(parts):
    moments = ChannelMoments()
    for part in parts:
        moments.update(part)
    return moments


def assert_numpys(moments, parts, rtol=1e-12):
    together = np.concatenate(
        [np.moveaxis(part.numpy(), 1, -1).reshape(-1, 3) for part in parts], dtype=np.float64
    )
    found = moments.compute()
    assert found.num_values == len(together)
    assert found.mean.dtype == found.std.dtype == torch.float64
    np.testing.assert_allclose(found.mean, together.mean(axis=0), rtol=rtol)
    np.testing.assert_allclose(found.std, together.std(axis=0), rtol=rtol)


def test_many_parts_in_any_order_are_numpys_whole():
    parts = parts_of(mean=1.0)
    assert_numpys(seen(parts), parts)
    assert_numpys(seen(parts[::-1]), parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_values_are_added_up_in_float64(dtype):
    parts = [part.to(dtype) for part in parts_of(mean=1.0, shapes=[(1, 3, 2**16), (1, 3, 5)])]
    assert_numpys(seen(parts), [part.double() for part in parts])


def test_a_spread_that_is_small_beside_the_mean_is_not_lost():
    # As mean of squares less square of the mean, even float64 would give 0 here, or a root of less.
    parts = parts_of(mean=1e8, std=1e-2)
    assert_numpys(seen(parts), parts, rtol=1e-6)


def test_merged_halves_equal_the_whole():
    parts = parts_of(mean=1.0)
    one, other = seen(parts[:2]), seen(parts[2:])
    before = other.compute()
    one.merge(other)
    one.merge(ChannelMoments())
    empty = ChannelMoments()
    empty.merge(one)
    for moments in (one, empty, empty.gathered()):
        assert_numpys(moments, parts)
    # What was merged, and what was merged into nothing, are left as they were.
    empty.update(parts[0])
    assert_numpys(one, parts)
    assert torch.equal(other.compute().std, before.std)
    assert torch.equal(other.compute().mean, before.mean)


def test_misuse_is_explained():
    with pytest.raises(ValueError, match="there are no values yet"):
        seen([torch.zeros(0, 3, 4)]).compute()
    moments = seen([torch.zeros(2, 3)])
    with pytest.raises(ValueError, match="moments of 4 and of 3 channels cannot be merged"):
        moments.update(torch.zeros(2, 4))

"""The Frechet distance against scipy's matrix root, and streams of it against the whole."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from magvit2_pytorch.metrics.moments import FrechetDistance, covariance, frechet_distance


def features(num=60, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(num, dim, generator=generator, dtype=torch.float64) @ mixing + seed


def by_scipy(recon, real, ddof=1):
    """As the reference of FID has it."""
    recon, real = recon.numpy(), real.numpy()
    a, b = (np.cov(x, rowvar=False, ddof=ddof) for x in (recon, real))
    apart = ((recon.mean(0) - real.mean(0)) ** 2).sum()
    return apart + np.trace(a + b - 2 * sqrtm(a @ b).real)


def of(recon, real, **options):
    distance = FrechetDistance(recon.shape[1], **options)
    distance.update(recon, real)
    return distance.compute()


@pytest.mark.parametrize(("unbiased", "ddof"), [(True, 1), (False, 0)])
def test_it_is_scipys(unbiased, ddof):
    recon, real = features(seed=1), features(num=45, seed=2)
    assert of(recon, real, unbiased=unbiased) == pytest.approx(
        by_scipy(recon, real, ddof), rel=1e-9
    )
    assert of(recon, real) == pytest.approx(of(real, recon), rel=1e-9)


def test_gaussians_along_axes_have_a_closed_form():
    a, b = torch.rand(5).double() + 0.1, torch.rand(5).double() + 0.1
    m, n = torch.randn(5).double(), torch.randn(5).double()
    wanted = (m - n).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    found = frechet_distance(m, n, a.diag(), b.diag())
    assert found == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("num", [60, 5], ids=["many", "fewer than their dimensions"])
def test_the_same_are_at_no_distance_and_a_shift_is_its_square(num):
    same = features(num)
    scale = float(same.var(dim=0).sum())
    assert of(same, same) == pytest.approx(0, abs=1e-9 * scale)
    assert of(same + 2, same) == pytest.approx(8 * 4, abs=1e-9 * scale)


def test_too_few_vectors_are_told_and_measured_where_they_are():
    """Of vectors in two planes that meet in nothing, the root of the product is 0."""
    recon, real = torch.zeros(3, 8), torch.zeros(3, 8)
    recon[:, :2], real[:, 4:6] = torch.randn(3, 2), torch.randn(3, 2)
    distance = FrechetDistance(8)
    distance.update(recon, real)
    assert distance.is_rank_deficient
    spread = sum(x.double().var(dim=0).sum() for x in (recon, real))
    apart = (recon.double().mean(0) - real.double().mean(0)).square().sum()
    assert distance.compute() == pytest.approx(float(spread + apart), rel=1e-6)
    distance.update(torch.randn(6, 8), torch.randn(6, 8))
    assert not distance.is_rank_deficient


def test_any_parts_give_what_the_whole_gives():
    recon, real = features(seed=1), features(seed=2)
    whole, parts = FrechetDistance(8), FrechetDistance(8)
    whole.update(recon, real)
    for mine, theirs in zip(*(x.split((1, 20, 0, 39)) for x in (recon, real)), strict=True):
        parts.update(mine, theirs)
    assert parts.num_vectors == 60
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-10)


def test_a_small_spread_beside_a_large_mean_is_not_lost():
    small = 1e-3 * features(seed=0)
    distance = FrechetDistance(8)
    for part in (small + 1e6).split(7):
        distance.update(part, part)
    wanted = torch.from_numpy(np.cov(small.numpy(), rowvar=False))
    torch.testing.assert_close(covariance(distance.real), wanted, rtol=1e-3, atol=1e-9)


def test_a_state_goes_on_to_the_bit():
    recon, real = features(seed=1), features(seed=2)
    before, after, whole = (FrechetDistance(8) for _ in range(3))
    before.update(recon[:9], real[:9])
    after.load_state_dict(before.state_dict())
    after.update(recon[9:], real[9:])
    for part in (slice(9), slice(9, None)):
        whole.update(recon[part], real[part])
    assert after.compute() == whole.compute()
    assert before.num_vectors == 9


def test_mistakes_are_said_and_change_nothing():
    distance = FrechetDistance(3)
    with pytest.raises(ValueError, match="two or more"):
        distance.compute()
    distance.update(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="4 numbers instead of 3"):
        distance.update(torch.zeros(1, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="not finite"):
        distance.update(torch.ones(2, 3), torch.full((2, 3), torch.nan))
    assert distance.recon.count == distance.real.count == 1

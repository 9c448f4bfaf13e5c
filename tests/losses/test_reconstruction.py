import pytest
import torch

from magvit2_pytorch.losses.reconstruction import RECONSTRUCTION_LOSSES

FORMULAS = {
    "mse": lambda d: d.square().mean(),
    "l1": lambda d: d.abs().mean(),
    "charbonnier": lambda d: ((d / 0.05).square() + 1).sqrt().mean() * 0.05 - 0.05,
}


def pair():
    return (torch.randn(2, 3, 2, 4, 4, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("name", RECONSTRUCTION_LOSSES)
def test_closed_form(name):
    recon, real = pair()
    expected = FORMULAS[name](recon - real)
    torch.testing.assert_close(RECONSTRUCTION_LOSSES[name](recon, real), expected)


@pytest.mark.parametrize("name", RECONSTRUCTION_LOSSES)
def test_gradient_by_finite_differences(name):
    recon, real = pair()
    loss = RECONSTRUCTION_LOSSES[name]
    assert torch.autograd.gradcheck(lambda r: loss(r, real), recon.requires_grad_())


@pytest.mark.parametrize("name", RECONSTRUCTION_LOSSES)
def test_the_real_video_is_the_minimum_and_a_place_of_rest(name):
    loss, (recon, real) = RECONSTRUCTION_LOSSES[name], pair()
    same = real.clone().requires_grad_()
    at_rest = loss(same, real)
    at_rest.backward()
    assert at_rest.item() == pytest.approx(0, abs=1e-12)
    assert same.grad.eq(0).all()
    assert loss(recon, real) == loss(real, recon) > 0


def test_charbonnier_is_squared_below_its_eps_and_absolute_above():
    loss, zero = RECONSTRUCTION_LOSSES["charbonnier"], torch.zeros(1, dtype=torch.float64)
    assert float(loss(zero + 1e-4, zero)) == pytest.approx(1e-8 / (2 * 0.05), rel=1e-4)
    assert float(loss(zero + 50, zero)) == pytest.approx(50 - 0.05, rel=1e-4)

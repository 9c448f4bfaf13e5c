import pytest
import torch

from magvit2_pytorch.losses import RECONSTRUCTION_LOSSES

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

"""The adaptive weight on a linear decoder, where both gradients are known by hand."""

import pytest
import torch

from magvit2_pytorch.losses.adversarial import adaptive_weight_from_gradients


def decoder():
    """Video = weight @ latent, for one latent."""
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    return weight, torch.randn(4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)


def gradients(losses, weight):
    return [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]


def test_closed_form_of_a_linear_decoder():
    """Of half the squared error the gradient is (W z - x) z', of a linear D it is v z'."""
    weight, latent, real = decoder()
    v = torch.randn(3, dtype=torch.float64)
    recon = weight @ latent
    losses = (recon - real).square().sum() / 2, -(v @ recon)
    found = adaptive_weight_from_gradients(*gradients(losses, weight))
    error = (recon - real).detach()
    expected = error.norm() * latent.norm() / (v.norm() * latent.norm() + 1e-4)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_with_it_both_losses_pull_alike():
    weight, latent, real = decoder()
    recon = weight @ latent
    reference, adversarial = (recon - real).square().mean(), -recon.tanh().mean()
    share = adaptive_weight_from_gradients(*gradients((reference, adversarial), weight), eps=0.0)
    norms = [x.norm() for x in gradients((reference, share * adversarial), weight)]
    torch.testing.assert_close(*norms)


def test_a_discriminator_that_says_nothing_gets_the_limit():
    ones, zeros = torch.full((4,), 1e6), torch.zeros(4)
    assert adaptive_weight_from_gradients(ones, zeros) == 1e4
    assert adaptive_weight_from_gradients(ones, zeros, max_weight=10.0) == 10
    assert adaptive_weight_from_gradients(zeros, zeros) == 0
    assert float(adaptive_weight_from_gradients(torch.ones(4), zeros, eps=0.1)) == pytest.approx(20)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_a_gradient_that_is_not_finite_gives_the_discriminator_no_say(bad, side):
    both = [torch.ones(4), torch.ones(4)]
    both[side][2] = bad
    assert adaptive_weight_from_gradients(*both) == 0


def test_half_precision_is_squared_in_single():
    large = torch.full((4,), 300.0, dtype=torch.float16)
    found = adaptive_weight_from_gradients(large, large)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(1, rel=1e-6)

"""The adaptive weight on a linear decoder, where both gradients are known by hand."""

import pytest
import torch

from magvit2_pytorch.losses import adaptive_weight, adaptive_weight_from_gradients


def decoder():
    """Video = weight @ latent, for one latent."""
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    return weight, torch.randn(4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)


def test_closed_form_of_a_linear_decoder():
    """Of half the squared error the gradient is (W z - x) z', of a linear D it is v z'."""
    weight, latent, real = decoder()
    v = torch.randn(3, dtype=torch.float64)
    recon = weight @ latent
    found = adaptive_weight((recon - real).square().sum() / 2, -(v @ recon), weight)
    error = (recon - real).detach()
    expected = error.norm() * latent.norm() / (v.norm() * latent.norm() + 1e-4)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_with_it_both_losses_pull_alike():
    weight, latent, real = decoder()
    recon = weight @ latent
    reference, adversarial = (recon - real).square().mean(), -recon.tanh().mean()
    share = adaptive_weight(reference, adversarial, weight, eps=0.0)
    norms = [
        torch.autograd.grad(loss, weight, retain_graph=True)[0].norm()
        for loss in (reference, share * adversarial)
    ]
    torch.testing.assert_close(*norms)


def test_the_backward_pass_is_still_to_come_and_gradients_are_not_touched():
    weight, latent, real = decoder()
    recon = weight @ latent
    reference, adversarial = (recon - real).square().mean(), -recon.tanh().mean()
    share = adaptive_weight(reference, adversarial, weight)
    assert weight.grad is None
    (reference + share * adversarial).backward()
    assert weight.grad.isfinite().all()


def test_gradients_that_are_known_give_the_same():
    weight, latent, real = decoder()
    recon = weight @ latent
    losses = (recon - real).square().mean(), -recon.tanh().mean()
    gradients = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
    assert adaptive_weight(*losses, weight) == adaptive_weight_from_gradients(*gradients)


def test_a_discriminator_that_says_nothing_gets_the_limit():
    ones, zeros = torch.full((4,), 1e6), torch.zeros(4)
    assert adaptive_weight_from_gradients(ones, zeros) == 1e4
    assert adaptive_weight_from_gradients(ones, zeros, max_weight=10.0) == 10
    assert adaptive_weight_from_gradients(zeros, zeros) == 0
    assert float(adaptive_weight_from_gradients(torch.ones(4), zeros, eps=0.1)) == pytest.approx(20)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_a_gradient_that_is_not_finite_gives_the_discriminator_no_say(bad, side):
    gradients = [torch.ones(4), torch.ones(4)]
    gradients[side][2] = bad
    assert adaptive_weight_from_gradients(*gradients) == 0


def test_half_precision_is_squared_in_single():
    large = torch.full((4,), 300.0, dtype=torch.float16)
    found = adaptive_weight_from_gradients(large, large)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(1, rel=1e-6)


def test_mistakes_are_told(without_type_checks):
    weight, latent, _ = decoder()
    recon, stranger = weight @ latent, torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="adversarial loss does not depend"):
        adaptive_weight(recon.mean(), stranger.mean(), weight)
    with pytest.raises(ValueError, match="reference loss does not depend"):
        adaptive_weight(recon.detach().mean(), recon.mean(), weight)
    with pytest.raises(ValueError, match="requires no gradient"):
        adaptive_weight(recon.mean(), recon.mean(), weight.detach())

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from magvit2_pytorch.quantizers.continuous import Continuous


def test_latents_pass_as_they_are():
    latents = torch.randn(2, 4, 3, 4, 4)
    continuous = Continuous(4)
    quantized, codes = continuous(latents)
    assert torch.equal(quantized, latents)
    assert codes is None
    assert continuous.bits_per_position is None
    assert continuous.loss_terms(latents) == {}
    assert continuous.loss_weights(0) == {}


def test_kl_is_that_of_torch_distributions():
    continuous = Continuous(4, kl=True, kl_loss_weight=1e-3)
    latents = torch.randn(2, 8, 3, 4, 4, dtype=torch.float64)
    mean, log_variance = latents[:, :4], latents[:, 4:]
    posterior = Normal(mean, (log_variance / 2).exp())
    unit = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = kl_divergence(posterior, unit).mean()
    torch.testing.assert_close(continuous.loss_terms(latents)["kl"], expected)
    assert continuous.loss_weights(7) == {"kl": 1e-3}
    assert torch.autograd.gradcheck(
        lambda x: continuous.loss_terms(x)["kl"], latents[:1, :, :1, :2, :2].requires_grad_()
    )


def test_training_hears_draws_and_evaluation_the_mean():
    continuous = Continuous(2, kl=True)
    mean, log_variance = torch.full((1, 2, 8, 64, 64), 3.0), torch.full((1, 2, 8, 64, 64), -1.0)
    latents = torch.cat((mean, log_variance), dim=1)
    assert torch.equal(continuous.eval()(latents).quantized, mean)
    draws = continuous.train()(latents).quantized
    assert draws.mean().item() == pytest.approx(3, abs=0.02)
    assert draws.var().item() == pytest.approx(torch.tensor(-1.0).exp().item(), rel=0.03)


def test_a_generator_makes_the_draw_repeatable():
    continuous = Continuous(2, kl=True).train()
    latents = torch.randn(1, 4, 2, 3, 3)
    first, again, other = (
        continuous(latents, generator=torch.Generator().manual_seed(seed)).quantized
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_extreme_log_variances_stay_finite():
    continuous = Continuous(1, kl=True).train()
    for log_variance in (-1e8, 1e8):
        latents = torch.tensor([1.0, log_variance]).view(1, 2, 1, 1, 1).requires_grad_()
        total = continuous(latents).quantized.sum() + continuous.loss_terms(latents)["kl"]
        total.backward()
        assert total.isfinite()
        assert latents.grad.isfinite().all()


def test_there_are_no_codes_to_decode():
    with pytest.raises(ValueError, match="continuous, it has no codes: use encode and decode"):
        Continuous(4).decode_codes(torch.zeros(1, 1, 2, 2, dtype=torch.long))


def test_no_channels_are_refused():
    with pytest.raises(ValueError, match="dim is 0"):
        Continuous(0)

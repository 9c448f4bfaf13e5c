"""The prior loss of a tokenizer: causal, with gradients to the encoder, resumable."""

import math

import pytest
import torch

from magvit2_pytorch.generators.latent_prior import LatentPrior
from tests.conftest import QUANTIZERS, build
from tests.training.test_trainer import assert_same, log_of, weights

PRIOR = dict(prior_loss_weight=0.1, prior=dict(dim=16, depth=1, heads=2))


def prior_of(quantizer):
    torch.manual_seed(0)
    prior = LatentPrior(quantizer, dim=16, depth=2, heads=2).double()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return prior


@pytest.mark.parametrize("name", ["fsq", "lfq-several", "lfq-residual"])
def test_a_position_sees_those_before_it_only(name):
    quantizer = build("residual", quantizer=name).quantizer
    prior = prior_of(quantizer)
    latents = torch.randn(1, quantizer.latent_dim, 3, 3, 4).double()
    quantized, codes = quantizer(latents)
    nll = prior.nll(quantized, codes)
    # In the order of waves: number 2 y + x, frame by frame.
    waves = torch.arange(3)[:, None, None] * 8 + torch.arange(3)[:, None] * 2 + torch.arange(4)
    for place in ((0, 0, 0), (1, 1, 2), (2, 2, 3), (1, 0, 3)):
        changed = quantized.clone()
        changed[(..., *place)] += 1
        differs = (prior.nll(changed, codes) != nll)[0]
        assert not differs[waves <= waves[place]].any()
        if place != (2, 2, 3):
            assert differs[waves > waves[place]].any()


def test_an_untrained_prior_knows_nothing():
    quantizer = build("residual", quantizer="fsq").quantizer
    quantized, codes = quantizer(torch.randn(1, 3, 2, 3, 4))
    nats = LatentPrior(quantizer, dim=16)(quantized, codes)
    assert nats.item() == pytest.approx(math.log(200), abs=0.02)


def test_gradients_reach_the_latents_before_and_every_parameter():
    quantizer = build("residual", quantizer="fsq").quantizer
    prior = prior_of(quantizer)
    latents = torch.randn(1, 3, 2, 3, 4).double().requires_grad_()
    prior(*quantizer(latents)).backward()
    assert (latents.grad[:, :, 0] != 0).all()
    # Nothing comes after the last position.
    assert (latents.grad[:, :, -1, -1, -1] == 0).all()
    assert [name for name, p in prior.named_parameters() if p.grad is None] == []


def test_it_is_one_more_loss_of_the_tokenizer(make_trainer):
    plain, one = (
        make_trainer(name, num_train_steps=1, **options)
        for name, options in (("plain", {}), ("one", PRIOR))
    )
    for trainer in (plain, one):
        trainer.train()
    assert "prior" not in plain.task.trainables
    line = next(line for line in log_of(one) if "loss" in line)
    assert line["prior"] == pytest.approx(math.log(200), abs=0.05)
    expected = next(line for line in log_of(plain) if "loss" in line)["loss"] + 0.1 * line["prior"]
    assert line["loss"] == pytest.approx(expected, rel=1e-4)
    moved = [
        name for name, weight in one.tokenizer.encoder.named_parameters()
        if not torch.equal(weight, dict(plain.tokenizer.encoder.named_parameters())[name])
    ]  # fmt: skip
    assert moved


def test_resuming_equals_never_stopping(make_trainer):
    whole = make_trainer("whole", num_train_steps=2, schedule="constant", **PRIOR)
    whole.train()
    for steps in (1, 2):
        part = make_trainer("part", num_train_steps=steps, schedule="constant", **PRIOR)
        part.train(resume="auto")
    assert_same(weights(part), weights(whole), atol=0, rtol=0)
    priors = [trainer.task.trainables["prior"].module for trainer in (part, whole)]
    for ours, theirs in zip(*(prior.parameters() for prior in priors), strict=True):
        assert torch.equal(ours, theirs)


def test_continuous_latents_have_no_prior(make_trainer):
    assert "continuous" in QUANTIZERS
    with pytest.raises(ValueError, match="continuous: generators need codes"):
        make_trainer(quantizer="continuous", **PRIOR)
    with pytest.raises(ValueError, match="prior_loss_weight is -1"):
        make_trainer(prior_loss_weight=-1.0)

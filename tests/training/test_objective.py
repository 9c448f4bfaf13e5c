import pytest
import torch

from magvit2_pytorch.training.clip_task import Objective, Reconstruction
from magvit2_pytorch.training.tokenizer_task import Autoencoder
from magvit2_pytorch.training.training_config import TrainingConfig
from tests.conftest import QUANTIZERS, build, random_video


def forward(quantizer, precision="fp32"):
    tokenizer = build("compress_space", "compress_time", quantizer=quantizer).train()
    video = random_video(5, batch=2)
    return tokenizer, video, Autoencoder(tokenizer, precision)(video)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_loss_is_the_weighted_sum_of_its_terms(quantizer):
    tokenizer, video, out = forward(quantizer)
    config = TrainingConfig(
        reconstruction_loss="l1", reconstruction_loss_weight=3.0, quantizer_loss_weight=0.5
    )
    objective = Objective(tokenizer.quantizer, config)
    loss = objective(video, out, step=0)
    assert set(loss.terms) == set(loss.weights)
    assert loss.weights["reconstruction"] == 3.0
    torch.testing.assert_close(loss.terms["reconstruction"], (out.recon - video).abs().mean())
    expected = 3 * loss.terms["reconstruction"]
    for name, weight in tokenizer.quantizer.loss_weights(0).items():
        assert loss.weights[name] == 0.5 * weight
        expected = expected + 0.5 * weight * loss.terms[name]
    torch.testing.assert_close(loss.total, expected)


@pytest.mark.parametrize("name", ["mse", "l1"])
def test_the_temporal_loss_is_that_of_changes(name):
    real, recon = random_video(4, batch=2), random_video(4, batch=2)
    config = TrainingConfig(
        reconstruction_loss=name, reconstruction_loss_weight=0.0, temporal_loss_weight=2.0
    )
    objective = Objective(None, config)
    error = (recon[:, :, 1:] - recon[:, :, :-1]) - (real[:, :, 1:] - real[:, :, :-1])
    expected = 2 * (error.abs() if name == "l1" else error**2).mean()
    torch.testing.assert_close(objective(real, Reconstruction(recon), step=0).total, expected)
    # A constant error does not flicker, and one frame has no changes.
    assert objective(real, Reconstruction(real + 0.5), step=0).total < 1e-9
    image = objective(real[:, :, :1], Reconstruction(recon[:, :, :1]), step=0)
    assert "temporal" not in image.terms


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_term_pulls_on_the_encoder(quantizer):
    tokenizer, video, out = forward(quantizer)
    terms = Objective(tokenizer.quantizer, TrainingConfig())(video, out, step=0).terms
    first = next(tokenizer.encoder.parameters())
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, first, retain_graph=True)
        assert gradient.abs().sum() > 0, name


def test_the_weights_follow_the_step():
    tokenizer, video, out = forward("lfq")
    tokenizer.quantizer.entropy_anneal_factor, tokenizer.quantizer.entropy_anneal_steps = 3.0, 10
    objective = Objective(tokenizer.quantizer, TrainingConfig())
    weights = [objective(video, out, step).weights["sample_entropy"] for step in (0, 5, 10, 99)]
    assert weights == pytest.approx([0.06, 0.04, 0.02, 0.02])


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_losses_are_float32_and_close_under_bf16(quantizer):
    tokenizer, video, out = forward(quantizer, "bf16")
    terms = Objective(tokenizer.quantizer, TrainingConfig())(video, out, step=0).terms
    assert {term.dtype for term in terms.values()} == {torch.float32}
    exact = Autoencoder(tokenizer)(video)
    objective = Objective(tokenizer.quantizer, TrainingConfig())
    recon = objective(video, exact, step=0).terms["reconstruction"]
    torch.testing.assert_close(terms["reconstruction"], recon, rtol=0.1, atol=0)

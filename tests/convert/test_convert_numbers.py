"""Converted O2-MAGVIT2 checkpoints give O2-MAGVIT2's numbers.

`data/` holds inputs and outputs of its modules (float32, CPU, random weights). Of the video model,
in the topology of the release at a quarter of its width, the weights are made by recipe from their
names, seed 1600, and those of its discriminator with seed 2600. The image model's are stored.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.convert.conversion import convert_checkpoint
from magvit2_pytorch.convert.inflate import inflate_into
from magvit2_pytorch.convert.o2_magvit2 import convert_discriminator, names
from magvit2_pytorch.convert.project import find_sources
from magvit2_pytorch.losses.adversarial import ADVERSARIAL_LOSSES, lecam_loss, r1_penalty
from magvit2_pytorch.losses.reconstruction import RECONSTRUCTION_LOSSES
from magvit2_pytorch.tokenizer.presets import magvit2_options
from tests import o2_magvit2 as theirs

DATA = Path(__file__).parent / "data"
SEED = 1600
TOPOLOGY = theirs.Shape(32, theirs.RELEASE.mults, theirs.RELEASE.halve_time, 4, 18)


def stored(name):
    return {key: torch.tensor(value) for key, value in np.load(DATA / f"{name}.npz").items()}


def assert_close(found, right, atol=3e-5):
    torch.testing.assert_close(found, right, atol=atol, rtol=0)


@pytest.fixture(scope="module")
def state():
    return theirs.made_state(theirs.tokenizer_shapes(TOPOLOGY), SEED)


@pytest.fixture(scope="module")
def video(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_file({**state, "quantize.mask": theirs.mask(18)}, path)
    return convert_checkpoint(path)


@pytest.fixture(scope="module")
def discriminator():
    shapes = theirs.discriminator_shapes(8, (2, 4, 4, 4, 4), (1, 1, 1))
    return convert_discriminator(theirs.made_state(shapes, SEED + 1000))


@torch.no_grad()
def test_a_video(video):
    right = stored("o2_3d_full_topology")
    latents = video.encode(right["input"])
    assert_close(latents, right["latent_prequant"])
    codes = video.quantize(latents).codes
    assert torch.equal(codes, right["indices"].long())
    assert_close(video.decode_from_code_indices(codes), right["reconstruction"])


@torch.no_grad()
def test_an_image_by_the_video_model(video):
    right = stored("o2_3d_full_topology")
    image = right["input"][:, :, 0]
    assert_close(video.encode(image), right["image_mode_latent_prequant"])
    assert_close(video(image), right["image_mode_reconstruction"][:, :, 0])


@torch.no_grad()
def test_an_image_by_the_image_model():
    right, image_model = stored("o2_2d"), convert_checkpoint(DATA / "o2_2d.safetensors")
    image = right["input_video"][:, :, 0]
    assert_close(image_model.encode(image)[:, :, 0], right["latent_prequant_2d_of_frame0"])
    assert_close(image_model(image), right["reconstruction_2d_of_frame0"])


@torch.no_grad()
def test_a_video_by_the_inflated_image_model():
    """Their kernel in the last tap, the upsampling repeated: what stage II starts from."""
    right, image_model = stored("o2_2d"), convert_checkpoint(DATA / "o2_2d.safetensors")
    options = magvit2_options(32, (1, 1, 2), (False, True), 1)
    inflated = VideoTokenizer(**options, codebook_size=2**10, image_size=64).eval()
    inflate_into(inflated, image_model)
    assert_close(inflated.encode(right["input_video"]), right["latent_prequant_3d_inflated"])
    assert_close(inflated(right["input_video"]), right["reconstruction_3d_inflated"])


def train_terms(tokenizer, discriminator, video):
    """Every term of one step on both sides by their names, and the generator's graph."""
    tokenizer.train()
    quantizer, latents = tokenizer.quantizer, tokenizer.encode(video)
    entropy = quantizer.loss_terms(latents)
    weights = quantizer.loss_weights(step=10**6)
    recon = tokenizer.decode(tokenizer.quantize(latents).quantized)
    tokenizer.eval()
    shown = video.clone().requires_grad_()
    real, fake = (discriminator((view,)).logits[0] for view in (shown, recon))
    # O2-MAGVIT2 takes the mean logit of a batch, and averages zeros into the running means.
    mean_logits = real.mean()[None], fake.mean()[None]
    means = [0.001 * logit.detach()[0] for logit in mean_logits]
    saturating, hinge = (ADVERSARIAL_LOSSES[name] for name in ("non_saturating", "hinge"))
    terms = {
        "per_sample_entropy": entropy["sample_entropy"],
        "batch_entropy": entropy["codebook_entropy"],
        "commitment": entropy["commitment"],
        "quantizer_aux_loss": sum(weights[name] * term for name, term in entropy.items()),
        "mse": RECONSTRUCTION_LOSSES["mse"](recon, video),
        "g_adv_non_saturating": saturating.generator(real, fake),
        "g_adv_hinge": hinge.generator(real, fake),
        "d_adv_non_saturating": saturating.discriminator(real, fake),
        "d_adv_hinge": hinge.discriminator(real, fake),
        "lecam": lecam_loss(*mean_logits, *means),
        "lecam_ema_real_after": means[0],
        "lecam_ema_fake_after": means[1],
        "r1_weighted": 10 * (1e-6 + r1_penalty((shown,), (real,))),
    }
    terms["generator_total_without_perceptual"] = (
        5 * terms["mse"] + terms["quantizer_aux_loss"] + 0.1 * terms["g_adv_non_saturating"]
    )
    terms["discriminator_total"] = (
        terms["d_adv_non_saturating"] + 0.001 * terms["lecam"] + terms["r1_weighted"]
    )
    return terms


def gradients(tokenizer, state, loss):
    """Of all parameters, by their names."""
    parameters = dict(tokenizer.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()))
    sources = find_sources(names(state), tokenizer)
    return {
        name: part
        for ours, gradient in zip(parameters, found, strict=True)
        for name, part in zip(
            sources[ours].theirs, gradient.chunk(len(sources[ours].theirs)), strict=True
        )
    }


@pytest.fixture(scope="module")
def step(video, discriminator):
    return train_terms(video, discriminator, stored("o2_3d_full_topology")["input"])


@pytest.fixture(scope="module")
def expected():
    return json.loads((DATA / "o2_3d_full_topology.json").read_text(encoding="utf-8"))


def entropy_of_rounding(video):
    """What rounding in the encoder's convolutions makes of the entropy per sample, to first order.

    A bit's entropy has slopes of up to 90 per unit of its latent (0.224 * 4 / temperature), so
    latents that are off by 4e-6, as float32 convolutions of about 1 are by a hundred summands in
    another order, move the mean by 5e-5 of itself on one CPU and by 2e-5 on another.
    """
    data = stored("o2_3d_full_topology")
    with torch.no_grad():
        moved = video.encode(data["input"]) - data["latent_prequant"]
    assert moved.abs().max() < 3e-5
    latents = data["latent_prequant"].requires_grad_()
    entropy = video.quantizer.loss_terms(latents)["sample_entropy"]
    (slope,) = torch.autograd.grad(entropy, latents)
    return float((slope * moved).sum())


def test_every_term_of_a_training_step(video, step, expected):
    right = {name: value for name, value in expected["train"].items() if name in step}
    assert set(right) == set(step)
    assert set(expected["train"]) - set(right) == {
        "entropy_loss_weight", "inv_temperature", "eps", "diversity_gamma", "commitment_weight",
        "recon_loss_weight", "g_adv_weight",
    }  # fmt: skip
    right["per_sample_entropy"] += entropy_of_rounding(video)
    for name, value in right.items():
        assert float(step[name].detach()) == pytest.approx(value, rel=1e-5), name


def test_the_entropies_of_their_own_latents(video, expected):
    terms = video.quantizer.loss_terms(stored("o2_3d_full_topology")["latent_prequant"])
    for ours, name in (
        ("sample_entropy", "per_sample_entropy"),
        ("codebook_entropy", "batch_entropy"),
        ("commitment", "commitment"),
    ):
        assert float(terms[ours]) == pytest.approx(expected["train"][name], rel=1e-5)


def test_the_gradients_of_a_training_step(video, state, step, expected):
    loss = step["generator_total_without_perceptual"]
    found = gradients(video, state, loss)
    assert found.keys() == expected["gradient_norms"].keys()
    for name, right in expected["gradient_norms"].items():
        # Biases that the next norm takes away again have no gradient but for rounding.
        assert float(found[name].norm()) == pytest.approx(right, rel=1e-3, abs=1e-6), name
    first = "encoder.conv_first.conv.weight"
    assert_close(found[first], stored("o2_3d_full_topology")[f"grad_{first}"])

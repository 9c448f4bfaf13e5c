"""Continuous latents to one scale and back, by statistics that live with the weights."""

import pytest
import torch

from magvit2_pytorch.quantizers.continuous import Continuous
from magvit2_pytorch.quantizers.fsq import FSQ
from magvit2_pytorch.quantizers.lfq import LFQ

MEAN, STD = torch.tensor([3.1, -0.7, 0.0]), torch.tensor([0.3, 4.1, 1.0])


def measured(kl=False):
    continuous = Continuous(3, kl=kl)
    continuous.store_statistics(MEAN, STD, 12)
    return continuous.eval()


@pytest.mark.parametrize("kl", [False, True])
def test_normalizing_is_a_shift_and_a_scale_of_each_channel(kl):
    continuous = measured(kl)
    latents = torch.randn(2, 3, 2, 4, 5)
    normalized = continuous.normalize(latents)
    for channel in range(3):
        expected = (latents[:, channel] - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(normalized[:, channel], expected)
    torch.testing.assert_close(continuous.denormalize(normalized), latents)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_type_is_kept_and_the_arithmetic_wide(dtype):
    continuous = measured()
    latents = (torch.randn(2, 3, 2, 4, 5) * STD.view(-1, 1, 1, 1) + MEAN.view(-1, 1, 1, 1)).to(
        dtype
    )
    with torch.autocast("cpu", torch.bfloat16):
        normalized = continuous.normalize(latents)
        back = continuous.denormalize(normalized)
    assert normalized.dtype == back.dtype == dtype
    exact = (latents.double() - MEAN.double().view(-1, 1, 1, 1)) / STD.double().view(-1, 1, 1, 1)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(normalized.double(), exact, rtol=2 * eps, atol=1e-12)
    torch.testing.assert_close(back.double(), latents.double(), rtol=8 * eps, atol=16 * eps)


def test_the_device_is_kept():
    with torch.device("meta"):
        continuous = Continuous(3)
        latents = torch.randn(1, 3, 1, 2, 2)
    assert continuous.normalize(latents).is_meta
    assert continuous.denormalize(latents).is_meta


def test_gradients_pass():
    continuous = measured()
    latents = torch.randn(1, 3, 1, 2, 2, requires_grad=True)
    continuous.denormalize(continuous.normalize(latents)).sum().backward()
    torch.testing.assert_close(latents.grad, torch.ones_like(latents))


def test_quantizing_does_not_normalize():
    latents = torch.randn(2, 3, 2, 4, 5)
    assert torch.equal(measured()(latents).quantized, latents)


@pytest.mark.parametrize("method", ["normalize", "denormalize"])
def test_what_was_never_measured_says_what_to_run(method):
    continuous = Continuous(3)
    assert not continuous.has_statistics
    with pytest.raises(ValueError, match=r"never measured: run measure_latents\(tokenizer, data"):
        getattr(continuous, method)(torch.randn(1, 3, 1, 2, 2))
    continuous = measured()
    assert continuous.has_statistics
    continuous.reset_statistics()
    assert not continuous.has_statistics
    for name, value in Continuous(3).state_dict().items():
        assert torch.equal(continuous.state_dict()[name], value)


@pytest.mark.parametrize("method", ["normalize", "denormalize"])
@pytest.mark.parametrize("make", [lambda: LFQ(2**6), lambda: FSQ((8, 5, 5))])
def test_codes_are_not_normalized(make, method):
    quantizer = make()
    with pytest.raises(ValueError, match=r"discrete.*continuous_dim"):
        getattr(quantizer, method)(torch.randn(1, quantizer.quantized_dim, 1, 2, 2))


@pytest.mark.usefixtures("without_type_checks")
def test_latents_of_another_shape_are_refused():
    # Those of a Gaussian before quantizing, and an image without its time axis.
    for wrong in (torch.randn(1, 6, 1, 2, 2), torch.randn(1, 3, 2, 2)):
        with pytest.raises(ValueError, match=r"give b d t h w with d = 3, as quantize\(encode"):
            measured(kl=True).normalize(wrong)


@pytest.mark.parametrize(
    ("mean", "std", "num_latents"),
    [
        (MEAN * float("nan"), STD, 1),
        (MEAN, STD / 0, 1),
        (MEAN, STD * 0, 1),
        (MEAN, STD, 0),
        (MEAN[:1], STD[:1], 1),
    ],
)
def test_statistics_that_cannot_be_are_refused(mean, std, num_latents):
    continuous = Continuous(3)
    with pytest.raises(ValueError, match="give 3 finite values of each, std above 0"):
        continuous.store_statistics(mean, std, num_latents)
    assert not continuous.has_statistics
    assert torch.equal(continuous.latent_mean, torch.zeros(3))


def test_statistics_live_in_the_state_dict():
    state = measured().state_dict()
    assert {name: value.dtype for name, value in state.items()} == {
        "latent_mean": torch.float32,
        "latent_std": torch.float32,
        "num_latents": torch.int64,
    }
    other = Continuous(3)
    other.load_state_dict(state)
    assert torch.equal(other.latent_mean, MEAN)
    assert torch.equal(other.latent_std, STD)
    assert other.num_latents == 12


@pytest.mark.parametrize("missing", ["latent_mean", "latent_std", "num_latents"])
def test_a_part_of_the_statistics_is_damage(missing):
    state = measured().state_dict()
    del state[missing]
    with pytest.raises(RuntimeError, match=missing):
        Continuous(3).load_state_dict(state)

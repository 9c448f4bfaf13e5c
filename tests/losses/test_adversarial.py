"""Adversarial losses against formulas written out, and against O2-MAGVIT2's numbers."""

import math

import pytest
import torch

from magvit2_pytorch.losses.adversarial import ADVERSARIAL_LOSSES


def softplus(x):
    return (1 + x.exp()).log()


def positive(x):
    return x * (x > 0)


DISCRIMINATOR = {
    "hinge": lambda r, f: positive(1 - r).mean() + positive(1 + f).mean(),
    "non_saturating": lambda r, f: softplus(-r).mean() + softplus(f).mean(),
    "relativistic": lambda r, f: softplus(f - r).mean(),
}
GENERATOR = {
    "hinge": lambda r, f: -f.mean(),
    "non_saturating": lambda r, f: softplus(-f).mean(),
    "relativistic": lambda r, f: softplus(r - f).mean(),
}
# Logits of a discriminator with random weights and the losses that they have, both made by
# running O2-MAGVIT2 (commit db78de9), rounded to float32.
O2 = {
    "o2_2d_nres2": dict(
        real=[[-0.03861932456493378], [-0.05106688290834427]],
        fake=[[-0.010627836920320988], [-0.00844630692154169]],
        hinge=(2.035305976867676, 0.00953707192093134),
        non_saturating=(1.4042150974273682, 0.6979272365570068),
    ),
    "o2_3d_t1": dict(
        real=[[-0.11213428527116776]],
        fake=[[-0.10754052549600601]],
        hinge=(2.004593849182129, 0.10754052549600601),
        non_saturating=(1.3916070461273193, 0.7483623623847961),
    ),
}


def logits(dtype=torch.float64):
    """Of a patch discriminator: a map for each of two samples, on both sides of the hinge."""
    return (2 * torch.randn(2, 1, 2, 3, 3, dtype=torch.float64).to(dtype) for _ in range(2))


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_closed_form(name):
    loss, (real, fake) = ADVERSARIAL_LOSSES[name], logits()
    torch.testing.assert_close(loss.discriminator(real, fake), DISCRIMINATOR[name](real, fake))
    torch.testing.assert_close(loss.generator(real, fake), GENERATOR[name](real, fake))


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_gradient_by_finite_differences(name):
    loss = ADVERSARIAL_LOSSES[name]
    real, fake = (x.requires_grad_() for x in logits())
    assert torch.autograd.gradcheck(loss.discriminator, (real, fake))
    assert torch.autograd.gradcheck(lambda f: loss.generator(real.detach(), f), (fake,))


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_the_players_pull_the_fake_logits_apart(name):
    """The generator wants them higher, the discriminator lower and the real ones higher."""
    loss = ADVERSARIAL_LOSSES[name]
    real, fake = (x.mul(0.1).requires_grad_() for x in logits())
    of_real, of_fake = torch.autograd.grad(loss.discriminator(real, fake), (real, fake))
    (of_generator,) = torch.autograd.grad(loss.generator(real.detach(), fake), fake)
    assert of_real.lt(0).all()
    assert of_fake.gt(0).all()
    assert of_generator.lt(0).all()


@pytest.mark.parametrize("fixture", O2)
@pytest.mark.parametrize("name", ["hinge", "non_saturating"])
def test_as_o2_computes_them(fixture, name):
    loss, values = ADVERSARIAL_LOSSES[name], O2[fixture]
    real, fake = torch.tensor(values["real"]), torch.tensor(values["fake"])
    discriminator, generator = values[name]
    assert float(loss.discriminator(real, fake)) == pytest.approx(discriminator, rel=1e-6)
    assert float(loss.generator(real, fake)) == pytest.approx(generator, rel=1e-6)


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_half_precision_is_computed_in_single(name):
    loss, (real, fake) = ADVERSARIAL_LOSSES[name], logits(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss.discriminator(real, fake), loss.generator(real, fake)
    wide = real.float(), fake.float()
    assert [term.dtype for term in terms] == [torch.float32] * 2
    assert terms == (loss.discriminator(*wide), loss.generator(*wide))


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_huge_logits_stay_finite(name):
    loss, huge = ADVERSARIAL_LOSSES[name], torch.full((2, 1), 1e5)
    for real in (huge, -huge):
        assert loss.discriminator(real, -real).isfinite()
        assert loss.generator(real, -real).isfinite()


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_at_indifference(name):
    """Logits of 0 for all: the values that training starts from."""
    zeros = torch.zeros(3, 1)
    expected = {"hinge": (2, 0), "non_saturating": (2 * math.log(2), math.log(2))}
    discriminator, generator = expected.get(name, (math.log(2), math.log(2)))
    loss = ADVERSARIAL_LOSSES[name]
    assert float(loss.discriminator(zeros, zeros)) == pytest.approx(discriminator)
    assert float(loss.generator(zeros, zeros)) == pytest.approx(generator)


def test_relativistic_pairs_by_position():
    loss, (real, fake) = ADVERSARIAL_LOSSES["relativistic"], logits()
    swapped = fake.flip(-1)
    assert loss.discriminator(real, fake) != loss.discriminator(real, swapped)
    both = real.flip(-1), swapped
    torch.testing.assert_close(loss.discriminator(real, fake), loss.discriminator(*both))


def test_relativistic_refuses_what_is_no_pair(without_type_checks):
    loss, (real, fake) = ADVERSARIAL_LOSSES["relativistic"], logits()
    with pytest.raises(ValueError, match="not pairs"):
        loss.discriminator(real, fake[:1])


def test_only_the_relativistic_generator_looks_at_real():
    real, fake = logits()
    looking = [
        name
        for name, loss in ADVERSARIAL_LOSSES.items()
        if loss.generator(real, fake) != loss.generator(real + 1, fake)
    ]
    assert looking == ["relativistic"]

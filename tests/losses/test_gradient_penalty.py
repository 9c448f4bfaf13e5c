"""Gradient penalties where they are known by hand, and their own gradients by differences."""

import pytest
import torch
from torch import nn

from magvit2_pytorch.discriminators.models import FrameDiscriminator
from magvit2_pytorch.losses.adversarial import (
    GRADIENT_PENALTIES,
    one_centered_penalty,
    points_between,
    r1_penalty,
)


def samples(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def linear_discriminator(x, weight):
    return (x.flatten(1) * weight).sum(1, keepdim=True)


def test_r1_of_a_linear_discriminator_is_its_squared_weight():
    x, weight = samples(3, 2, 2, 2, 2), torch.randn(16, dtype=torch.float64)
    penalty = r1_penalty((x,), (linear_discriminator(x, weight),))
    torch.testing.assert_close(penalty, (weight**2).sum())


def test_r1_of_a_quadratic_discriminator():
    """D(x) = x A x / 2 with A symmetric: the gradient is A x, of each sample."""
    x, a = samples(5, 4), torch.randn(4, 4, dtype=torch.float64)
    a = a + a.T
    penalty = r1_penalty((x,), (((x @ a) * x).sum(1) / 2,)).detach()
    expected = sum(float((a @ row).square().sum()) for row in x.detach()) / 5
    assert float(penalty) == pytest.approx(expected, rel=1e-12)


def test_r1_of_several_frames_is_that_of_single_ones_over_their_number():
    """The score is the mean of the frames' logits, as `gradient_penalty_weight` says."""
    discriminator = FrameDiscriminator(dim=4, dim_mults=(2,), num_frames=3).double()
    clip = samples(2, 3, 3, 8, 8)
    whole = r1_penalty((clip,), discriminator((clip,)).logits)
    frames = [clip.detach()[:, :, i : i + 1].requires_grad_() for i in range(3)]
    single = [r1_penalty((frame,), discriminator((frame,)).logits) for frame in frames]
    torch.testing.assert_close(whole, sum(single) / 3 / 3)


def test_one_centered_of_a_linear_discriminator():
    x, weight = samples(3, 16), torch.randn(16, dtype=torch.float64)
    penalty = one_centered_penalty((x,), (linear_discriminator(x, weight),))
    torch.testing.assert_close(penalty, ((weight**2).sum().sqrt() - 1) ** 2)


def test_one_centered_of_a_quadratic_discriminator_is_of_each_sample():
    x = samples(5, 4)
    penalty = one_centered_penalty((x,), (x.square().sum(1) / 2,)).detach()
    norms = [float(row.square().sum().sqrt()) for row in x.detach()]
    assert float(penalty) == pytest.approx(sum((n - 1) ** 2 for n in norms) / 5, rel=1e-12)


@pytest.mark.parametrize("name", GRADIENT_PENALTIES)
def test_its_gradient_in_the_weights_by_finite_differences(name):
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Softplus(), nn.Conv2d(2, 1, 3)).double()
    names, weights = zip(*net.named_parameters(), strict=True)

    def penalty(*weights):
        inputs = (x.clone().requires_grad_(),)
        state = dict(zip(names, weights, strict=True))
        logits = torch.func.functional_call(net, state, inputs)
        return GRADIENT_PENALTIES[name](inputs, (logits,))

    assert torch.autograd.gradcheck(penalty, weights)


@pytest.mark.parametrize("name", GRADIENT_PENALTIES)
def test_a_map_counts_as_its_mean(name):
    """Ten equal patches are no steeper than one; the mean is what adversarial losses take."""
    x, weight = samples(3, 16), torch.randn(16, dtype=torch.float64)
    logit = linear_discriminator(x, weight)
    single = GRADIENT_PENALTIES[name]((x,), (logit,))
    patches = GRADIENT_PENALTIES[name]((x,), (logit[:, :, None].expand(3, 1, 10),))
    torch.testing.assert_close(single, patches)


def test_all_inputs_of_a_sample_and_all_its_discriminators_count():
    x, y = samples(3, 4), samples(3, 2, 2)
    a, b = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    joint = linear_discriminator(x, a) + linear_discriminator(y, b)
    expected = a.square().sum() + b.square().sum()
    torch.testing.assert_close(r1_penalty((x, y), (joint,)), expected)
    torch.testing.assert_close(
        one_centered_penalty((x, y), (joint,)), (expected.sqrt() - 1).square()
    )
    # Two heads on one input: the gradient of their sum.
    heads = linear_discriminator(x, a), linear_discriminator(x, b)
    torch.testing.assert_close(r1_penalty((x,), heads), (a + b).square().sum())


@pytest.mark.parametrize("name", GRADIENT_PENALTIES)
def test_a_flat_discriminator_has_a_finite_gradient(name):
    x, weight = samples(2, 4), torch.zeros(4, dtype=torch.float64, requires_grad=True)
    penalty = GRADIENT_PENALTIES[name]((x,), (linear_discriminator(x, weight),))
    assert float(penalty.detach()) == {"r1": 0, "one_centered": 1}[name]
    assert torch.autograd.grad(penalty, weight)[0].isfinite().all()


@pytest.mark.parametrize("name", GRADIENT_PENALTIES)
def test_half_precision_is_squared_in_single(name):
    """300^2 is more than float16 can say."""
    x = torch.ones(2, 3, dtype=torch.float16, requires_grad=True)
    penalty = GRADIENT_PENALTIES[name]((x,), ((x * 300).sum(1),))
    assert penalty.dtype == torch.float32
    norm = 300 * 3**0.5
    assert float(penalty.detach()) == pytest.approx(
        {"r1": norm**2, "one_centered": (norm - 1) ** 2}[name]
    )


@pytest.mark.parametrize("name", GRADIENT_PENALTIES)
def test_mistakes_are_told(name, without_type_checks):
    penalty, x = GRADIENT_PENALTIES[name], samples(2, 4)
    with pytest.raises(ValueError, match="requires_grad_"):
        penalty((x.detach(),), (x.sum(1),))
    with pytest.raises(ValueError, match="requires_grad_"):
        penalty((x,), (x.detach().sum(1),))
    with pytest.raises(ValueError, match="numbers of samples"):
        penalty((x,), (x[:1].sum(1),))
    with pytest.raises(ValueError, match="at least one"):
        penalty((), ())


def test_points_lie_between_real_and_fake():
    real, fake = samples(4, 3, 2, 2, 2), samples(4, 3, 2, 2, 2)
    points = points_between(real, fake, torch.Generator().manual_seed(1))
    assert points.requires_grad
    assert points.is_leaf
    share = ((points - fake) / (real - fake)).detach().flatten(1)
    torch.testing.assert_close(share, share[:, :1].expand_as(share))
    assert share.gt(0).all()
    assert share.lt(1).all()
    assert share[:, 0].unique().numel() == 4
    torch.testing.assert_close(points, points_between(real, fake, torch.Generator().manual_seed(1)))


def test_there_is_no_line_between_different_shapes(without_type_checks):
    with pytest.raises(ValueError, match="give one fake of the same size"):
        points_between(samples(2, 3), samples(3, 3))

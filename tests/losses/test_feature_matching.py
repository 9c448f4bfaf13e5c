import pytest
import torch

from magvit2_pytorch.losses.reconstruction import feature_matching_loss


def layers():
    """Features of two layers: of real, and of fake."""
    shapes = (2, 3, 2, 4, 4), (2, 5, 1, 2, 2)
    return ([torch.randn(shape, dtype=torch.float64) for shape in shapes] for _ in range(2))


@pytest.mark.parametrize("relative", [True, False])
def test_closed_form(relative):
    real, fake = layers()
    expected = 0
    for r, f in zip(real, fake, strict=True):
        term = (f - r).abs().sum() / r.numel()
        expected += term / (r.abs().sum() / r.numel() + 1e-6 if relative else 1) / 2
    torch.testing.assert_close(feature_matching_loss(real, fake, relative), expected)


@pytest.mark.parametrize("relative", [True, False])
def test_gradient_by_finite_differences_and_only_of_fake(relative):
    real, fake = layers()
    real, fake = ([x.requires_grad_() for x in side] for side in (real, fake))
    loss = feature_matching_loss(real, fake, relative)
    assert torch.autograd.grad(loss, real, allow_unused=True) == (None, None)
    assert torch.autograd.gradcheck(
        lambda *f: feature_matching_loss([x.detach() for x in real], f, relative), fake
    )


def test_the_scale_of_a_layer_counts_only_without_relative():
    real, fake = layers()
    scaled = [[side[0], side[1] * 100] for side in (real, fake)]
    torch.testing.assert_close(
        feature_matching_loss(*scaled), feature_matching_loss(real, fake), rtol=1e-5, atol=0
    )
    assert feature_matching_loss(*scaled, False) > 10 * feature_matching_loss(real, fake, False)


@pytest.mark.parametrize("relative", [True, False])
def test_equal_features_are_at_rest_and_silent_ones_finite(relative):
    real, _ = layers()
    assert feature_matching_loss(real, real, relative) == 0
    silent = [torch.zeros_like(x) for x in real]
    assert feature_matching_loss(silent, silent, relative) == 0
    assert feature_matching_loss(silent, real, relative).isfinite()


def test_half_precision_is_averaged_in_single():
    real, fake = ([x.bfloat16() for x in side] for side in layers())
    loss = feature_matching_loss(real, fake)
    assert loss.dtype == torch.float32
    wide = ([x.float() for x in side] for side in (real, fake))
    assert loss == feature_matching_loss(*wide)


def test_mistakes_are_told(without_type_checks):
    real, fake = layers()
    with pytest.raises(ValueError, match="2 layers of real features and 1 of fake"):
        feature_matching_loss(real, fake[:1])
    with pytest.raises(ValueError, match="one or more"):
        feature_matching_loss([], [])
    with pytest.raises(ValueError, match="layer 1"):
        feature_matching_loss(real, [fake[0], fake[1][:1]])

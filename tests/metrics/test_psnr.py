"""PSNR against torchmetrics and closed forms."""

import math

import pytest
import torch

from magvit2_pytorch.metrics.quality import StreamedPsnr, psnr


@pytest.mark.parametrize("shape", [(3, 3, 5, 8, 12), (4, 1, 16, 16)], ids=["video", "image"])
def test_each_clip_is_as_torchmetrics_says(shape):
    # Noise of another strength for every clip: one error over all of them would differ.
    real = torch.rand(shape) * 2 - 1
    strength = torch.linspace(0.05, 1.5, shape[0]).view(-1, *[1] * (len(shape) - 1))
    recon = real + strength * torch.randn(shape)
    # Imported here: it takes 5 seconds, and all processes of a test run collect all tests.
    from torchmetrics.functional.image import peak_signal_noise_ratio

    expected = peak_signal_noise_ratio(
        recon, real, data_range=(-1.0, 1.0), dim=tuple(range(1, len(shape))), reduction="none"
    )
    torch.testing.assert_close(psnr(recon, real), expected)


def test_an_error_of_a_tenth_is_26_db():
    real = torch.zeros(2, 3, 1, 4, 4)
    recon = real + torch.tensor([0.1, -0.2]).view(2, 1, 1, 1, 1)
    expected = torch.tensor([20 * math.log10(2 / 0.1), 20 * math.log10(2 / 0.2)])
    torch.testing.assert_close(psnr(recon, real), expected)


def test_what_a_display_would_clamp_is_clamped():
    real = torch.ones(1, 3, 2, 4, 4)
    assert psnr(real * 7, real).eq(math.inf).all()


def test_equal_clips_are_infinitely_good_and_only_they():
    real = torch.rand(2, 3, 2, 4, 4) * 2 - 1
    recon = real.clone()
    recon[1, 0, 0, 0, 0] *= -1
    assert psnr(recon, real).isinf().tolist() == [True, False]


def test_half_precision_is_measured_in_float32():
    real = torch.rand(1, 3, 4, 32, 32) * 2 - 1
    recon = (real + 0.01 * torch.randn_like(real)).bfloat16()
    assert psnr(recon, real.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(
        psnr(recon, real.bfloat16()), psnr(recon.float(), real.bfloat16().float()), atol=0, rtol=0
    )


def test_a_clip_is_worth_the_same_alone_and_in_a_batch_and_holds_no_graph():
    real = torch.rand(3, 3, 2, 8, 8) * 2 - 1
    recon = (real + 0.1 * torch.randn_like(real)).requires_grad_()
    together = psnr(recon, real)
    assert not together.requires_grad
    for i, value in enumerate(together):
        torch.testing.assert_close(psnr(recon[i : i + 1], real[i : i + 1])[0], value)


def test_parts_of_a_clip_give_the_psnr_of_the_whole():
    real = torch.rand(1, 3, 6, 8, 8) * 2 - 1
    recon = real + torch.linspace(0, 1, 6).view(1, 1, 6, 1, 1) * torch.randn_like(real)
    parts = StreamedPsnr()
    for pair in zip(recon.split((1, 2, 3), dim=2), real.split((1, 2, 3), dim=2), strict=True):
        parts.update(*pair)
    assert parts.compute() == pytest.approx(float(psnr(recon, real)), rel=1e-6)
    same = StreamedPsnr()
    same.update(real, real)
    assert same.compute() == math.inf

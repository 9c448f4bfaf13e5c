"""SSIM and MS-SSIM against a plain transcription of the paper and against torchmetrics."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from magvit2_pytorch.metrics.quality import block_edges, ms_ssim, ssim


def pair(batch=2, channels=3, frames=3, height=32, width=40, noise=0.2):
    """Smooth clips and noisy ones of them, beyond [-1, 1] here and there."""
    coarse = torch.rand(batch, channels, frames, 5, 6) * 2.2 - 1.1
    real = F.interpolate(coarse, (frames, height, width), mode="trilinear")
    return real + noise * torch.randn_like(real), real


def by_the_paper(recon, real):
    """Window by window, of one picture in [0, 1], h w."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    padded = [np.pad(x, 5, mode="reflect") for x in (recon, real)]
    values = np.empty(recon.shape)
    for i, j in np.ndindex(*recon.shape):
        x, y = (p[i : i + 11, j : j + 11] for p in padded)
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        values[i, j] = ((2 * mx * my + 0.01**2) * (2 * cov + 0.03**2)) / (
            (mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2)
        )
    return values.mean()


def as_pictures(clips):
    return ((clips.clamp(-1, 1) + 1) / 2).transpose(1, 2).flatten(0, 1)


def test_it_is_the_papers():
    recon, real = pair(batch=1, channels=1, frames=2, height=9, width=13)
    frames = zip(*(as_pictures(x)[:, 0].double().numpy() for x in (recon, real)), strict=True)
    wanted = np.mean([by_the_paper(*frame) for frame in frames])
    assert float(ssim(recon, real)) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("measure", "side"), [(ssim, 32), (ms_ssim, 176)])
def test_they_are_those_of_torchmetrics(measure, side):
    image = pytest.importorskip("torchmetrics.functional.image")
    theirs = {
        ssim: image.structural_similarity_index_measure,
        ms_ssim: image.multiscale_structural_similarity_index_measure,
    }[measure]
    recon, real = pair(height=side, width=side + 9)
    each = theirs(as_pictures(recon), as_pictures(real), data_range=1.0, reduction="none")
    found = measure(recon, real)
    assert found.shape == (2,)
    torch.testing.assert_close(found, each.view(2, 3).mean(dim=1), atol=1e-5, rtol=0)
    assert 0.1 < float(found.min()) < float(found.max()) < 0.99


@pytest.mark.parametrize(("measure", "side"), [(ssim, 6), (ms_ssim, 161)])
def test_a_clip_is_like_itself_and_less_like_others(measure, side):
    recon, real = pair(frames=1, height=side, width=side)
    torch.testing.assert_close(measure(real, real), torch.ones(2))
    worse = real + 2 * (recon - real)
    assert (measure(worse, real) < measure(recon, real)).all()
    assert (measure(recon, real) < 1).all()
    with pytest.raises(ValueError, match=f"too small.*sides of {side} or more"):
        measure(recon[..., 1:], real[..., 1:])


def test_other_shapes_are_refused(without_type_checks):
    recon, real = pair()
    with pytest.raises(ValueError, match="differ"):
        ssim(recon, real[:1])


def test_opposites_have_no_similarity_and_no_gradient_is_kept():
    _, real = pair(frames=1, height=161, width=161)
    recon = (-real).requires_grad_()
    assert float(ms_ssim(recon.detach(), real).max()) < 0.01
    assert not ssim(recon, real).requires_grad


def test_block_edges_of_noise_and_of_a_mosaic():
    torch.manual_seed(0)
    noise = torch.rand(2, 3, 2, 64, 64) * 2 - 1
    assert block_edges(noise, 4).sub(1).abs().max() < 0.05
    blocks = torch.rand(2, 3, 2, 16, 16) * 2 - 1
    mosaic = blocks.repeat_interleave(4, dim=3).repeat_interleave(4, dim=4)
    # Within a block nothing changes but for a small texture, so the ratio is that of the two.
    texture = 1e-3 * noise
    assert (block_edges(mosaic + texture, 4) > 100).all()
    # The grid of another period, or a shifted one, is not seen as strongly.
    assert (block_edges((mosaic + texture)[..., 2:-2, 2:-2], 4) < 0.01).all()
    with pytest.raises(ValueError, match="too few"):
        block_edges(noise[..., :7, :7], 4)

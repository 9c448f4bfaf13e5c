"""Whether motion is right: closed forms."""

import pytest
import torch

from magvit2_pytorch.metrics.quality import temporal_consistency


def clip(batch=2, frames=5):
    return torch.rand(batch, 3, frames, 6, 7) * 1.6 - 0.8


def test_what_is_wrong_in_all_frames_alike_is_no_flicker():
    real = clip()
    found = temporal_consistency(real + 0.1 * torch.randn(2, 3, 1, 6, 7).clamp(-1, 1), real)
    torch.testing.assert_close(found.error, torch.zeros(2), atol=1e-12, rtol=0)
    assert (found.energy > 0.01).all()


def test_a_clip_that_stands_still_has_the_error_of_all_the_motion():
    real = clip()
    error, energy = temporal_consistency(real[:, :, :1].expand_as(real), real)
    torch.testing.assert_close(error, energy)
    torch.testing.assert_close(energy[1], (real[1, :, 1:] - real[1, :, :-1]).square().mean())


def test_flicker_has_a_closed_form():
    real = clip(frames=4)
    flicker = torch.tensor([0.1, -0.1, 0.1, -0.1]).view(4, 1, 1)
    error, _ = temporal_consistency(real + flicker, real)
    torch.testing.assert_close(error, torch.full((2,), 0.2**2))


def test_values_are_clamped_and_one_frame_has_no_motion():
    real = torch.ones(1, 1, 2, 3, 3)
    over = torch.tensor([2.0, 5.0]).view(1, 1, 2, 1, 1).expand_as(real)
    assert temporal_consistency(over, real) == (0, 0)
    with pytest.raises(ValueError, match="one frame"):
        temporal_consistency(real[:, :, :1], real[:, :, :1])

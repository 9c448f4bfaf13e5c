import torch

from magvit2_pytorch.functional import linear_scan, own_copy, pad_frames


def test_the_scan_has_the_gradients_of_the_loop():
    decay = torch.rand(1, 6, 2, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_scan, (decay, value))


def test_the_scan_forgets_at_a_decay_of_zero():
    decay = torch.rand(1, 8, 2, dtype=torch.float64)
    decay[:, 4] = 0
    value = torch.randn(1, 8, 2, dtype=torch.float64)
    out = linear_scan(decay, value)
    torch.testing.assert_close(out[:, 4:], linear_scan(decay[:, 4:], value[:, 4:]))
    assert out.isfinite().all()


def test_a_video_that_fits_is_not_copied():
    video = torch.zeros(1, 1, 5, 2, 2)
    assert pad_frames(video, 4) is video
    assert pad_frames(video, 3) is not video


def test_what_is_kept_holds_no_more_than_itself_without_gradients():
    whole = torch.randn(100, requires_grad=True) * 2
    with torch.no_grad():
        part = own_copy(whole[:2])
    assert torch.equal(part, whole[:2])
    assert part.untyped_storage().nbytes() == part.nbytes
    assert not part.requires_grad
    assert own_copy(whole[:2]).requires_grad

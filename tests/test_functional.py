import torch

from magvit2_pytorch.functional import detach_past, linear_scan, pad_frames


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


def test_detaching_keeps_the_tree_and_its_values():
    leaf = torch.randn(3, requires_grad=True)
    past = (leaf * 2, (), (None, [leaf[:2]]), 3)
    detached = detach_past(past)
    assert detached[1:3] == ((), (None, detached[2][1]))
    assert detached[3] == 3
    assert torch.equal(detached[0], past[0])
    assert torch.equal(detached[2][1][0], leaf[:2])

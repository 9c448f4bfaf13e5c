"""What is particular to one of them."""

import pytest
import torch
from torch.nn import functional as F

from magvit2_pytorch.discriminators.discriminator import gather_frames
from magvit2_pytorch.discriminators.models import (
    DETAIL_GAIN,
    FrameDiscriminator,
    MultiScaleDiscriminator,
    VideoDiscriminator,
)
from tests.conftest import random_video

SMALL = dict(dim=4, dim_mults=(2, 2))


def test_frames_are_judged_one_by_one():
    discriminator = FrameDiscriminator(**SMALL, num_frames=3).double()
    view = random_video(3, (9, 9), batch=2, dtype=torch.float64)
    together = discriminator((view,))
    apart = [discriminator((view[:, :, [t]],)) for t in range(3)]
    logits = torch.cat([judgement.logits[0] for judgement in apart], dim=1)
    torch.testing.assert_close(together.logits[0], logits, atol=1e-12, rtol=0)
    for x, *parts in zip(together.features, *(j.features for j in apart), strict=True):
        torch.testing.assert_close(x, torch.cat(parts, dim=2), atol=1e-12, rtol=0)


def test_details_are_frames_less_their_blur():
    """Beside a dense convolution; half precision is for the network alone."""
    discriminator = FrameDiscriminator(**SMALL, num_frames=3, detail_taps=5).double()
    video = random_video(4, (9, 8), batch=2, dtype=torch.float64)
    picks = discriminator.pick(video)
    row = torch.tensor([1, 4, 6, 4, 1], dtype=torch.float64) / 16
    frames = gather_frames(video, *picks).movedim(1, 2).reshape(-1, 1, 9, 8)
    blurred = F.conv2d(F.pad(frames, (2,) * 4, mode="reflect"), (row[:, None] * row)[None, None])
    details = DETAIL_GAIN * (frames - blurred).reshape(2, 3, 3, 9, 8).movedim(1, 2)
    torch.testing.assert_close(discriminator.views(video, picks)[0], details, atol=1e-12, rtol=0)
    discriminator, video = discriminator.float(), video.float()
    with torch.autocast("cpu", torch.bfloat16):
        (view,) = discriminator.views(video, picks)
    torch.testing.assert_close(view, details.float(), atol=1e-5, rtol=0)


def test_details_have_neither_colour_nor_shading():
    """A constant and a slope change no detail inside a frame; contrast changes the logits."""
    discriminator = FrameDiscriminator(**SMALL, detail_taps=5).double()
    video = random_video(1, (12, 12), dtype=torch.float64)
    picks = discriminator.pick(video)
    colour = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64).view(3, 1, 1, 1)
    slope = torch.linspace(-0.5, 0.5, 12, dtype=torch.float64)

    def inside(video):
        # Reflection at the border makes an edge of a slope.
        return discriminator.views(video, picks)[0][..., 2:-2, 2:-2]

    torch.testing.assert_close(inside(video + colour + slope), inside(video), atol=1e-12, rtol=0)
    logits = [discriminator(discriminator.views(x, picks)).logits[0] for x in (video, video * 0.5)]
    assert not torch.allclose(*logits)


@pytest.mark.parametrize("detail_taps", [0, 1, 4])
def test_details_need_a_blur_about_the_pixel(detail_taps):
    with pytest.raises(ValueError, match="use an odd number from 3, such as 9"):
        FrameDiscriminator(**SMALL, detail_taps=detail_taps)


def test_a_clip_is_more_than_its_frames():
    discriminator = VideoDiscriminator(**SMALL)
    view = random_video(9, (9, 9))
    assert not torch.allclose(
        discriminator((view,)).logits[0], discriminator((view[:, :, [4]],)).logits[0]
    )
    assert not torch.allclose(
        discriminator((view,)).logits[0], discriminator((view.flip(2),)).logits[0]
    )


def test_a_clip_is_seen_whole_unless_frames_are_counted():
    video = random_video(17, (2, 2), batch=3)
    (pick,) = VideoDiscriminator(**SMALL).pick(video)
    assert pick.tolist() == [list(range(17))] * 3
    (pick,) = VideoDiscriminator(**SMALL, num_frames=4, stride=3).pick(video)
    assert (pick.diff(dim=1) == 3).all()
    assert pick.shape == (3, 4)


def test_scales_have_picks_of_their_own():
    discriminator = MultiScaleDiscriminator(**SMALL, scales=((2, 1), (3, 2), (2, 1)))
    picks = discriminator.pick(random_video(30, (2, 2), batch=8))
    assert [pick.shape[1] for pick in picks] == [2, 3, 2]
    assert [int(pick.diff(dim=1).unique()) for pick in picks] == [1, 2, 1]
    assert not torch.equal(picks[0], picks[2])


def test_every_scale_judges_its_own_view():
    discriminator = MultiScaleDiscriminator(**SMALL, scales=((2, 1), (3, 2)))
    video = random_video(9, (8, 8))
    views = discriminator.views(video, discriminator.pick(video))
    before = discriminator(views).logits
    after = discriminator((views[0], views[1] + 1)).logits
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("num_frames", [1, 2, 4, 8, 9, 16, 17])
def test_a_fixed_head_counts_what_arrives(num_frames):
    discriminator = VideoDiscriminator(**SMALL, head="fixed", input_size=(num_frames, 12, 7))
    assert discriminator((random_video(num_frames, (12, 7)),)).logits[0].shape == (1,)
    with pytest.raises(ValueError, match=rf"views of size \({num_frames}, 12, 7\)"):
        discriminator((random_video(num_frames, (24, 7)),))


def test_wrong_numbers_are_named():
    with pytest.raises(ValueError, match=r"needs \(frames, height, width\)"):
        VideoDiscriminator(head="fixed")
    with pytest.raises(ValueError, match=r"needs \(height, width\)"):
        FrameDiscriminator(head="fixed")
    with pytest.raises(ValueError, match=r"input_size \(1, 8, 8\) is for head 'fixed'"):
        VideoDiscriminator(input_size=(1, 8, 8))
    with pytest.raises(ValueError, match="num_frames is 0"):
        FrameDiscriminator(num_frames=0)
    with pytest.raises(ValueError, match="stride is 0"):
        VideoDiscriminator(stride=0)
    with pytest.raises(ValueError, match="num_frames is 0"):
        MultiScaleDiscriminator(scales=((0, 1),))
    with pytest.raises(ValueError, match="scales is empty"):
        MultiScaleDiscriminator(scales=())
    with pytest.raises(ValueError, match="use 'pooled' or 'patch'"):
        MultiScaleDiscriminator(head="fixed")


def test_the_paper_order_is_wide_before_it_is_small():
    for block_order, dim_between in (("o2", 4), ("paper", 8)):
        block = VideoDiscriminator(**SMALL, block_order=block_order).network.blocks[0]
        assert block.conv_in.weight.shape[:2] == (dim_between, 4)
        assert block.conv_out.weight.shape[:2] == (8, dim_between)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 8])
def test_bfloat16_gives_the_gradient_of_float32(num_frames):
    discriminator = VideoDiscriminator(dim=8, dim_mults=(2, 2))
    view = random_video(num_frames, (16, 16), batch=2)
    grads = []
    for enabled in (True, False):
        discriminator.zero_grad()
        # What memory holds before must not matter.
        junk = [torch.full((n,), float("nan")) for n in (432, 1728, 3456, 6912, 8000)]
        del junk
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = discriminator((view,)).logits[0]
        logits.sum().backward()
        grads.append([p.grad.clone() for p in discriminator.parameters()])
    for low, high in zip(*grads, strict=True):
        assert (low - high).norm() < 0.1 * high.norm()

"""What holds for every discriminator in the registry."""

import pytest
import torch

from magvit2_pytorch.discriminators.discriminator import (
    DISCRIMINATORS,
    DiscriminatorOutput,
    build_discriminator,
)
from tests.conftest import random_video

SMALL = dict(dim=4, dim_mults=(2, 2))
HEADS = ("pooled", "patch")
ORDERS = ("o2", "paper")
every_name = pytest.mark.parametrize("name", sorted(DISCRIMINATORS))
every_head = pytest.mark.parametrize("head", HEADS)


def generator():
    return torch.Generator().manual_seed(3)


def small(name, **options):
    return build_discriminator(name, **{**SMALL, **options})


def judge(discriminator, video):
    return discriminator(discriminator.views(video, discriminator.pick(video, generator())))


@every_name
@every_head
def test_clips_may_be_of_any_length(name, head):
    discriminator = small(name, head=head)
    for num_frames in (*range(1, 7), 8, 9, 17, 18):
        judgement = judge(discriminator, random_video(num_frames, (9, 7), batch=2))
        assert isinstance(judgement, DiscriminatorOutput)
        for logits in judgement.logits:
            assert logits.shape[0] == 2
            assert logits.isfinite().all()
            assert name != "frame" or logits.shape[1] == 1


@every_name
@every_head
@pytest.mark.parametrize("blur_taps", [1, 3, 4])
def test_pictures_may_be_of_any_size(name, head, blur_taps):
    discriminator = small(name, head=head, blur_taps=blur_taps, dim_mults=(1, 2, 2))
    for size in ((1, 1), (1, 5), (2, 3), (17, 6), (16, 16)):
        judgement = judge(discriminator, random_video(3, size, batch=2))
        space = tuple(-(-n // 8) for n in size)
        for logits in judgement.logits:
            assert logits.isfinite().all()
            if head == "patch":
                assert logits.shape == (2, 1, *space)
            else:
                assert logits.shape == ((2, 1) if name == "frame" else (2,))


@every_name
@every_head
@pytest.mark.parametrize("block_order", ORDERS)
def test_every_parameter_gets_a_gradient(name, head, block_order):
    discriminator = small(name, head=head, block_order=block_order)
    judgement = judge(discriminator, random_video(9, (12, 12)))
    sum(logits.square().sum() for logits in judgement.logits).backward()
    for parameter_name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@every_name
@every_head
def test_a_gradient_penalty_reaches_the_weights(name, head):
    discriminator = small(name, head=head)
    video = random_video(9, (12, 12), batch=2)
    views = discriminator.views(video, discriminator.pick(video, generator()))
    views = tuple(view.requires_grad_() for view in views)
    logits = sum(logits.sum() for logits in discriminator(views).logits)
    grads = torch.autograd.grad(logits, views, create_graph=True)
    sum(grad.square().sum() for grad in grads).backward()
    for parameter_name, parameter in discriminator.named_parameters():
        if parameter_name.endswith("weight"):
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.abs().max() > 0, parameter_name


@every_name
@pytest.mark.parametrize(("head", "block_order"), zip(("pooled", "patch"), ORDERS, strict=True))
def test_derivatives_are_those_of_finite_differences(name, head, block_order):
    options = dict(scales=((2, 1), (2, 2))) if name == "multiscale" else dict(num_frames=2)
    discriminator = build_discriminator(
        name, 1, dim=2, dim_mults=(1,), head=head, block_order=block_order, **options
    ).double()
    size = (2, 3) if name == "multiscale" else (3, 4)
    video = random_video(3, size, channels=1, dtype=torch.float64)
    picks = discriminator.pick(video, generator())

    def logits(*views):
        return tuple(logits.square() for logits in discriminator(views).logits)

    views = tuple(view.requires_grad_() for view in discriminator.views(video, picks))
    assert torch.autograd.gradcheck(logits, views)
    assert torch.autograd.gradgradcheck(logits, views)


@every_name
@every_head
def test_real_and_fake_together_are_judged_as_apart(name, head):
    discriminator = small(name, head=head).double()
    real, fake = (random_video(9, (10, 12), batch=2, dtype=torch.float64) for _ in range(2))
    picks = discriminator.pick(real, generator())
    views = [discriminator.views(video, picks) for video in (real, fake)]
    both = discriminator(tuple(torch.cat(pair) for pair in zip(*views, strict=True)))
    apart = [discriminator(view) for view in views]
    for field in DiscriminatorOutput._fields:
        for together, *parts in zip(
            getattr(both, field), *(getattr(j, field) for j in apart), strict=True
        ):
            torch.testing.assert_close(together, torch.cat(parts), atol=1e-12, rtol=0)


@every_name
def test_picks_repeat_with_their_generator_and_rise_within_the_clip(name):
    discriminator = small(name)
    video = random_video(24, (4, 4), batch=64)
    picks, again = (discriminator.pick(video, generator()) for _ in range(2))
    assert len(picks) == discriminator.num_views
    for pick, same in zip(picks, again, strict=True):
        assert torch.equal(pick, same)
        assert pick.min() >= 0
        assert pick.max() < 24
        assert (pick.diff(dim=1) > 0).all()
        if pick.shape[1] < 24:
            assert len(pick.unique(dim=0)) > 1, "samples are picked from one by one"


@every_name
def test_views_are_the_frames_that_were_picked(name):
    discriminator = small(name)
    video = random_video(17, (3, 2), batch=4)
    picks = discriminator.pick(video, generator())
    views = discriminator.views(video, picks)
    for view, pick in zip(views, picks, strict=True):
        for sample, frames, number in zip(video, view, pick, strict=True):
            assert torch.equal(frames, sample[:, number])


@every_name
def test_frames_that_were_not_picked_are_not_seen(name):
    options = dict(num_frames=5) if name == "video" else {}
    discriminator = small(name, **options)
    video = random_video(30, (8, 8), batch=2)
    picks = discriminator.pick(video, generator())
    unseen = video + 1
    for sample, frames in enumerate(zip(*picks, strict=True)):
        for number in torch.cat(frames).unique():
            unseen[sample, :, number] = video[sample, :, number]
    assert (unseen != video).any()
    before, after = (discriminator(discriminator.views(v, picks)) for v in (video, unseen))
    for one, other in zip(before.logits, after.logits, strict=True):
        assert torch.equal(one, other)


@every_name
def test_features_are_maps_of_every_depth_with_the_batch_first(name):
    discriminator = small(name)
    judgement = judge(discriminator, random_video(9, (16, 16), batch=2))
    assert len(judgement.features) == 3 * discriminator.num_views
    for features in judgement.features:
        assert features.ndim == 5
        assert features.shape[:2] == (2, 8)


@every_name
@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, torch.float32), (3, torch.bfloat16), (4, torch.float32)]
)
def test_autocast_computes_low_and_judges_in_float32(name, channels, dtype):
    discriminator = small(name, channels=channels)
    video = random_video(9, (16, 16), batch=2, channels=channels).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        judgement = judge(discriminator, video)
    sum(logits.sum() for logits in judgement.logits).backward()
    assert all(features.dtype == torch.bfloat16 for features in judgement.features)
    exact = judge(discriminator, video)
    for logits, right in zip(judgement.logits, exact.logits, strict=True):
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, right, atol=0.1, rtol=0.1)
    assert all(p.grad.isfinite().all() for p in discriminator.parameters())


@every_name
def test_state_dicts_carry_all_there_is(name):
    one, other = small(name), small(name)
    video = random_video(9, (8, 8))
    assert not torch.equal(judge(one, video).logits[0], judge(other, video).logits[0])
    assert one.state_dict().keys() == dict(one.named_parameters()).keys()
    other.load_state_dict(one.state_dict())
    for logits, same in zip(judge(one, video).logits, judge(other, video).logits, strict=True):
        assert torch.equal(logits, same)


@every_name
def test_weights_start_xavier_uniform_with_the_gain_of_relu(name):
    for parameter_name, parameter in build_discriminator(name, dim=16).named_parameters():
        if parameter_name.endswith("bias"):
            assert not parameter.any()
            continue
        fan_in, fan_out = parameter[0].numel(), parameter[:, 0].numel()
        bound = (2 * 6 / (fan_in + fan_out)) ** 0.5
        assert parameter.abs().max() <= bound
        if parameter.numel() > 500:
            assert parameter.abs().max() > 0.95 * bound
            assert abs(parameter.std() / bound - 3**-0.5) < 0.05


@every_name
def test_wrong_options_are_named(name, without_type_checks):
    for options, words in [
        (dict(channels=2), r"2 channels: use one of \(1, 3, 4\)"),
        (dict(block_order="o3"), r"block_order 'o3': use one of \('o2', 'paper'\)"),
        (dict(head="global"), "head 'global': use one of"),
        (dict(head="fixed"), "head 'fixed'"),
        (dict(blur_taps=0), "a blur of 0 taps: use 3 or 4"),
        (dict(dim_mults=()), r"dim_mults \(\)"),
        (dict(dim=0), "dim 0"),
        (dict(dims=8), "has no option 'dims': did you mean dim"),
    ]:
        with pytest.raises(ValueError, match=words):
            small(name, **options)


@every_name
def test_wrong_videos_are_named(name, without_type_checks):
    discriminator = small(name, channels=1)
    video = random_video()
    with pytest.raises(ValueError, match="has 3 channels, but this discriminator was built for 1"):
        discriminator.views(video, discriminator.pick(video))
    with pytest.raises(
        ValueError, match=f"7 views for a discriminator of {discriminator.num_views}"
    ):
        discriminator((video,) * 7)


def test_an_unknown_name_is_an_error_with_a_hint():
    with pytest.raises(ValueError, match="did you mean 'frame'"):
        build_discriminator("frames")


@every_name
@every_head
def test_a_batch_of_nothing_gives_nothing(name, head):
    for num_frames in (1, 5):
        output = judge(small(name, head=head), random_video(num_frames, (9, 7), batch=0))
        assert all(len(x) == 0 for x in (*output.logits, *output.features))

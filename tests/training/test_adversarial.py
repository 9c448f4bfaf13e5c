"""Discriminators and perceptual networks in training: one forward pass serves both sides."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from magvit2_pytorch.discriminators.discriminator import DISCRIMINATORS, Discriminator
from magvit2_pytorch.losses.adversarial import ADVERSARIAL_LOSSES, adaptive_weight_from_gradients
from magvit2_pytorch.runtime import keyed_seed
from magvit2_pytorch.training.meters import Meters
from magvit2_pytorch.training.training_config import TrainingConfig
from tests.training.conftest import clips, micro_step
from tests.training.test_trainer import assert_same, log_of, weights

TINY = dict(dim=4, dim_mults=(1, 2))
EVERYTHING = dict(
    frame_adversarial_weight=0.1,
    video_adversarial_weight=0.1,
    multiscale_adversarial_weight=0.1,
    frame_discriminator=TINY,
    video_discriminator=TINY,
    multiscale_discriminator=TINY | dict(scales=((3, 1), (2, 2))),
    gradient_penalty_weight=0.1,
    gradient_penalty_every=2,
    lecam_loss_weight=0.01,
    feature_matching_weight=0.1,
    adaptive_adversarial_weight=True,
    discriminator_start_step=1,
    adversarial_start_step=2,
    adversarial_ramp_steps=2,
)
ONE = dict(video_adversarial_weight=0.1, video_discriminator=TINY)


def gradients(trainer):
    named = dict(trainer.tokenizer.named_parameters())
    for discriminator in trainer.discriminators:
        named |= {
            f"{discriminator.name}.{n}": p for n, p in discriminator.network.named_parameters()
        }
    return {n: p.grad.clone() for n, p in named.items() if p.grad is not None}


def one_backward(trainer, video, step=0):
    meters = Meters(trainer.task)
    with trainer._micro_step(0, []) as micro:
        meters.add(trainer.task.step(video, micro._replace(step=step)))
    return gradients(trainer), meters.read()


def counted(module: nn.Module) -> list:
    """A list that grows by one with every forward pass of the module."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        *zip(DISCRIMINATORS, ADVERSARIAL_LOSSES, strict=True),
        *zip(DISCRIMINATORS, reversed(list(ADVERSARIAL_LOSSES)), strict=True),
    ],
)
def test_gradients_are_those_of_two_separate_passes(make_trainer, name, loss):
    """Against the textbook: one graph for the tokenizer, another for the discriminator."""
    options = {f"{name}_adversarial_weight": 0.3, f"{name}_discriminator": TINY}
    trainer = make_trainer(quantizer="lfq", adversarial_loss=loss, **options)
    video = torch.stack(clips(2))
    ours, _ = one_backward(trainer, video)

    for module in (trainer.tokenizer, trainer.discriminators[0].network):
        module.zero_grad()
    with trainer._micro_step(0, []) as micro:
        out = trainer.autoencoder(video)
        discriminator = trainer.discriminators[0].network
        picks = discriminator.pick(video, micro.generator)

    def logits(of):
        return discriminator(discriminator.views(of, picks)).logits

    def mean(side, fake):
        pairs = zip(logits(video), logits(fake), strict=True)
        return torch.stack([side(real, fake) for real, fake in pairs]).mean()

    play = ADVERSARIAL_LOSSES[loss]
    (trainer.objective(video, out, 0).total + 0.3 * mean(play.generator, out.recon)).backward()
    discriminator.zero_grad()
    mean(play.discriminator, out.recon.detach()).backward()
    assert_same(ours, gradients(trainer), atol=1e-6, rtol=1e-4)


def test_one_forward_of_everything_serves_a_step(make_trainer):
    trainer = make_trainer(**EVERYTHING, num_train_steps=5, grad_accum_every=2)
    autoencoder = counted(trainer.autoencoder)
    discriminators = [counted(discriminator.network) for discriminator in trainer.discriminators]
    trainer.train()
    assert len(autoencoder) == 5 * 2
    # They start a step later.
    assert [len(calls) for calls in discriminators] == [4 * 2] * 3


def test_what_has_no_weight_is_not_built(make_trainer, monkeypatch):
    monkeypatch.setattr(Discriminator, "__init__", None)
    monkeypatch.setattr("magvit2_pytorch.training.clip_task.build_perceptual", None)
    trainer = make_trainer(num_train_steps=1, perceptual_weights="nowhere.pth")
    trainer.train()
    assert trainer.discriminators == []
    assert trainer.objective.perceptual is None


def test_two_delays_and_a_ramp(make_trainer):
    options = ONE | dict(
        discriminator_start_step=2, adversarial_start_step=4, adversarial_ramp_steps=3
    )
    trainer = make_trainer(**options, num_train_steps=9)
    before = {n: p.clone() for n, p in trainer.discriminators[0].network.named_parameters()}
    trainer.config.__dict__["num_train_steps"] = 2
    trainer.train()
    assert_same(before, dict(trainer.discriminators[0].network.named_parameters()))
    trainer.config.__dict__["num_train_steps"] = 9
    trainer.train()
    lines = {line["step"]: line for line in log_of(trainer) if "loss" in line}
    learns = [step for step, line in lines.items() if "video_discriminator" in line]
    assert learns == [3, 4, 5, 6, 7, 8, 9]  # lines are numbered by the steps taken
    felt = [lines[step].get("weight/video_adversarial") for step in range(1, 10)]
    assert felt[:4] == [None] * 4
    assert felt[4:] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


def test_the_discriminator_steps_once_a_step_at_the_rate_asked_for(make_trainer):
    trainer = make_trainer(
        **ONE, discriminator_learning_rate=2e-4, num_train_steps=6, schedule="constant"
    )
    trainer.train()
    [optimizer] = trainer.optimizations["video_discriminator"].optimizers
    states = optimizer.state_dict()["state"]
    assert {int(state["step"]) for state in states.values()} == {6}
    rates = [x["video_discriminator_learning_rate"] for x in log_of(trainer) if "loss" in x]
    assert rates == pytest.approx([2e-4] * 6)


def test_everything_is_in_the_log_under_its_own_name(make_trainer):
    trainer = make_trainer(**EVERYTHING, num_train_steps=4)
    trainer.train()
    lines = [line for line in log_of(trainer) if "loss" in line]
    names = set().union(*lines)
    for kind in DISCRIMINATORS:
        terms = "discriminator", "adversarial", "gradient_penalty", "lecam", "feature_matching"
        for term in terms:
            assert {f"{kind}_{term}", f"weight/{kind}_{term}"} <= names
        for value in ("real_logit", "fake_logit", "adaptive_weight", "discriminator_grad_norm"):
            assert f"{kind}_{value}" in names
    assert lines[1]["weight/frame_gradient_penalty"] == pytest.approx(0.1 * 2)
    penalized = ["frame_gradient_penalty" in line for line in lines]
    assert penalized == [False, True, False, True]


# The losses themselves have no state.
@pytest.mark.parametrize(
    "adversarial_loss",
    [
        pytest.param(loss, marks=[pytest.mark.slow] * (loss != "hinge"))
        for loss in ADVERSARIAL_LOSSES
    ],
)
def test_resuming_equals_never_stopping(make_trainer, adversarial_loss):
    options = EVERYTHING | dict(adversarial_loss=adversarial_loss, grad_accum_every=2)
    whole = make_trainer("whole", **options, checkpoint_every_step=3)
    whole.train()
    torch.manual_seed(7)
    second = make_trainer("second", **options)
    for discriminator in second.discriminators:
        for parameter in discriminator.network.parameters():
            nn.init.zeros_(parameter)
    second.load(whole.checkpoints_folder / "step-3")
    second.train()
    assert_same(weights(second), weights(whole), atol=0, rtol=0)
    for name, ours in second.optimizations.items():
        assert_same(ours.state_dict(), whole.optimizations[name].state_dict(), atol=0, rtol=0)


def test_discriminators_may_join_later(make_trainer):
    plain = make_trainer("plain", num_train_steps=2)
    plain.train()
    trainer = make_trainer("gan", **ONE, num_train_steps=4)
    trainer.load(plain.checkpoints_folder / "step-2")
    trainer.train()
    assert trainer.step == 4
    again = make_trainer("again", num_train_steps=5)
    again.load(trainer.checkpoints_folder / "step-4")  # and leave
    again.train()


def accumulated_and_large(make_trainer, **options):
    """A run of two micro-batches a step, and one of batches twice as large."""
    options = ONE | dict(num_train_steps=3, optimizer="adam", betas=(0.5, 0.9)) | options
    small = make_trainer("small", **options, batch_size=2, grad_accum_every=2)
    large = make_trainer("large", **options, batch_size=4)
    for trainer in (small, large):
        trainer.train()
    return small, large


def test_accumulating_equals_the_large_batch(make_trainer):
    """Without adaptive weights and feature matching: see the next test."""
    options = dict(gradient_penalty_weight=0.1, lecam_loss_weight=1.0)
    small, large = accumulated_and_large(make_trainer, **options)
    assert_same(weights(small), weights(large), atol=2e-5, rtol=1e-3)
    ours, theirs = (t.discriminators[0].network.state_dict() for t in (small, large))
    assert_same(ours, theirs, atol=2e-5, rtol=1e-3)
    ours, theirs = (t.discriminators[0].lecam.state_dict() for t in (small, large))
    assert_same(ours, theirs, atol=1e-6, rtol=1e-4)
    assert int(ours["num_updates"]) == 3
    # Adam forgives a gradient of the wrong length.
    for ours, theirs in zip(*(log_of(t)[:3] for t in (small, large)), strict=True):
        for name in ("video_discriminator_grad_norm", "video_lecam", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


@pytest.mark.parametrize(
    "option", [dict(adaptive_adversarial_weight=True), dict(feature_matching_weight=0.1)]
)
def test_ratios_of_means_are_those_of_each_micro_batch(make_trainer, option):
    """The two exceptions: near the large batch, and not equal to it."""
    norms = [log_of(t)[0]["grad_norm"] for t in accumulated_and_large(make_trainer, **option)]
    assert norms[0] == pytest.approx(norms[1], rel=5e-2)
    assert norms[0] != pytest.approx(norms[1], rel=1e-5)


def test_the_first_step_has_no_lecam_and_the_next_one_the_means_of_the_first(make_trainer):
    trainer = make_trainer(**ONE, lecam_loss_weight=0.1)
    discriminator = trainer.discriminators[0]
    video = torch.stack(clips(2))
    first = discriminator.compute_gradients(
        video, (video * 0.5).requires_grad_(), micro_step(trainer)
    ).measured
    assert first["video_lecam"] == 0
    discriminator.after_step(taken=True)
    means = [first[f"video_{side}_logit"] for side in ("real", "fake")]
    torch.testing.assert_close(
        [discriminator.lecam.real_mean, discriminator.lecam.fake_mean], means
    )
    discriminator.lecam.fake_mean -= 5  # far enough for the logits to be pulled to it
    before = {n: v.clone() for n, v in discriminator.lecam.state_dict().items()}
    second = discriminator.compute_gradients(
        video, (video * 0.5).requires_grad_(), micro_step(trainer, step=1)
    )
    assert second.measured["video_lecam"] > 0
    assert_same(discriminator.lecam.state_dict(), before, atol=0, rtol=0)


def test_a_gradient_that_is_not_finite_moves_no_discriminator(make_trainer):
    trainer = make_trainer(**ONE, num_train_steps=2)
    discriminator = trainer.discriminators[0]
    before = {n: p.clone() for n, p in discriminator.network.named_parameters()}
    parameter = next(discriminator.network.parameters())
    parameter.grad = torch.full_like(parameter, float("nan"))
    assert trainer.optimizations["video_discriminator"].apply_gradients() is None
    assert_same(before, dict(discriminator.network.named_parameters()), atol=0, rtol=0)


@pytest.mark.parametrize(("penalty", "sides"), [("r1", 2), ("one_centered", 3)])
def test_penalties_are_taken_where_they_belong(make_trainer, penalty, sides):
    """R1 at the real clips, the other between real and fake: a third part of the one pass."""
    options = dict(gradient_penalty=penalty, gradient_penalty_weight=1.0)
    trainer = make_trainer(**ONE, **options)
    discriminator = trainer.discriminators[0]
    video = torch.stack(clips(2))
    sizes = []
    discriminator.network.register_forward_hook(
        lambda module, given, judged: sizes.append(len(given[0][0]))
    )
    terms = []
    for decoded in (video * 0.9, video.flip(-1) * -0.5):
        recon = decoded.clone().requires_grad_()
        result = discriminator.compute_gradients(video, recon, micro_step(trainer))
        terms.append(float(result.measured["video_gradient_penalty"]))
    assert sizes == [2 * sides] * 2
    # What the fakes are matters only between them.
    assert (terms[0] == pytest.approx(terms[1], rel=1e-5)) == (penalty == "r1")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_penalty_is_taken_in_float32(make_trainer, precision):
    trainer = make_trainer(**ONE, gradient_penalty_weight=1.0, precision=precision)
    video = torch.stack(clips(2))
    recon = (video * 0.9).requires_grad_()
    discriminator = trainer.discriminators[0]
    seen = discriminator.network.register_forward_hook
    dtypes = []
    seen(lambda module, given, judged: dtypes.append(judged.features[0].dtype))
    result = discriminator.compute_gradients(video, recon, micro_step(trainer))
    discriminator.compute_gradients(video, recon, micro_step(trainer, step=1))
    assert dtypes[0] == torch.float32
    assert dtypes[1] == (torch.bfloat16 if precision == "bf16" else torch.float32)
    terms = [value for value in result.measured.values() if isinstance(value, torch.Tensor)]
    assert all(torch.isfinite(term) and term.dtype == torch.float32 for term in terms)


def test_the_adaptive_weight_balances_gradients_at_the_last_layer(make_trainer):
    trainer = make_trainer(**ONE, adaptive_adversarial_weight=True)
    video = torch.stack(clips(2))
    out = trainer.autoencoder(video)
    gradient, adversarial = torch.randn_like(out.recon), torch.randn_like(out.recon) * 7
    proxies = ((out.recon * each).sum() for each in (gradient, adversarial))
    weight = trainer.task.adaptive_weight(*proxies)
    last = trainer.tokenizer.decoder.layers[-1].layers[-1].conv.weight
    (of_both,) = torch.autograd.grad(out.recon, last, adversarial * weight, retain_graph=True)
    (of_picture,) = torch.autograd.grad(out.recon, last, gradient)
    torch.testing.assert_close(of_both.norm(), of_picture.norm(), rtol=1e-2, atol=0)


def last_layer(trainer):
    return trainer.tokenizer.decoder.layers[-1].layers[-1].conv.weight


def adversarial_part(make_trainer, step=0, **options):
    """The discriminators' part of the tokenizer's gradient: as one vector, and its norm at the last
    layer relative to that of the reconstruction."""
    video = torch.stack(clips(2))
    trainer, alone = make_trainer(**options), make_trainer()
    found, plain = one_backward(trainer, video, step)[0], one_backward(alone, video)[0]
    part = torch.cat([(found[name] - plain[name]).flatten() for name in plain])
    last, rest = last_layer(trainer).grad, last_layer(alone).grad
    return part, float((last - rest).norm() / rest.norm())


def assert_nearly(found, expected, share=1e-3):
    assert expected.norm() > 0
    assert (found - expected).norm() < share * expected.norm()


@pytest.mark.parametrize("adaptive", [False, True])
def test_weight_and_ramp_multiply_the_adversarial_gradient(make_trainer, adaptive):
    options = dict(video_discriminator=TINY, adaptive_adversarial_weight=adaptive)
    whole, share = adversarial_part(make_trainer, video_adversarial_weight=0.4, **options)
    half, half_share = adversarial_part(make_trainer, video_adversarial_weight=0.2, **options)
    # The second of four steps up a ramp of three.
    options |= dict(adversarial_ramp_steps=3, video_adversarial_weight=0.4)
    on_ramp, ramp_share = adversarial_part(make_trainer, step=1, **options)
    assert_nearly(2 * half, whole)
    assert_nearly(2 * on_ramp, whole)
    if adaptive:
        shares = [share, half_share, ramp_share]
        assert shares == pytest.approx([0.4, 0.2, 0.2], rel=1e-2)


def test_the_adaptive_weight_is_that_of_the_unweighted_loss(make_trainer):
    """Against one graph of everything, with the weight by its textbook formula."""
    options = ONE | dict(video_adversarial_weight=0.3, adversarial_ramp_steps=3)
    trainer = make_trainer(**options, adaptive_adversarial_weight=True)
    video = torch.stack(clips(2))
    ours, measured = one_backward(trainer, video, step=1)
    ours = {n: g for n, g in ours.items() if not n.startswith("video.")}

    trainer.tokenizer.zero_grad()
    out, discriminator = trainer.autoencoder(video), trainer.discriminators[0].network
    picks = discriminator.pick(video, torch.Generator())  # a short clip is seen whole
    real, fake = (
        discriminator(discriminator.views(x, picks)).logits[0] for x in (video, out.recon)
    )
    picture = trainer.objective(video, out, 1).recon_loss
    loss = ADVERSARIAL_LOSSES["hinge"].generator(real, fake)
    factor = adaptive_weight_from_gradients(
        *(
            torch.autograd.grad(x, last_layer(trainer), retain_graph=True)[0]
            for x in (picture, loss)
        )
    )
    (picture + 0.3 * 2 / 4 * factor * loss).backward()
    theirs = {n: g for n, g in gradients(trainer).items() if not n.startswith("video.")}
    assert measured["video_adaptive_weight"] == pytest.approx(float(factor), rel=1e-4)
    assert_same(ours, theirs, atol=1e-6, rtol=1e-3)


def test_discriminators_add_by_their_weights(make_trainer):
    """Each has a factor of its own, so that its share is its own weight."""
    options = dict(
        frame_discriminator=TINY, video_discriminator=TINY, adaptive_adversarial_weight=True
    )

    def part(frame, video):
        weights = dict(frame_adversarial_weight=frame, video_adversarial_weight=video)
        return adversarial_part(make_trainer, **weights, **options)

    (frame, frame_share), (video, video_share) = part(0.2, 1e-9), part(1e-9, 0.1)
    both, share = part(0.2, 0.1)
    assert [frame_share, video_share] == pytest.approx([0.2, 0.1], rel=1e-2)
    assert_nearly(both, frame + video)
    assert share < 0.31


def test_feature_matching_has_no_ramp_and_no_adaptive_weight(make_trainer):
    def part(**more):
        with_it, without = (
            adversarial_part(make_trainer, **ONE, **more, feature_matching_weight=weight)[0]
            for weight in (0.5, 0.0)
        )
        return with_it - without

    plain = part()
    assert_nearly(part(adaptive_adversarial_weight=True), plain)
    assert_nearly(part(adversarial_ramp_steps=3), plain)


@pytest.mark.parametrize(
    ("device", "saved"), [("cpu", []), (torch.device("cuda", 1), [torch.device("cuda", 1)])]
)
def test_the_state_of_the_device_in_use_is_saved_and_no_other(
    make_trainer, monkeypatch, device, saved
):
    trainer, calls = make_trainer(), []
    trainer.accelerator = SimpleNamespace(device=torch.device(device), process_index=0)

    def fork_rng(devices=None, enabled=True):
        calls.append(devices)
        return nullcontext()

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    with torch.random.fork_rng(), trainer._micro_step(0, []):
        pass
    assert calls[1:] == [saved]


def test_draws_are_keyed_by_seed_step_and_micro_step(make_trainer):
    trainer, before = make_trainer(seed=7), torch.get_rng_state()

    def drawn(step, number):
        trainer.step = step
        with trainer._micro_step(number, []) as micro:
            assert micro.generator.initial_seed() == keyed_seed("step", 7, step, number, 0)
            return float(torch.rand(())), float(torch.rand((), generator=micro.generator))

    draws = [drawn(*key) for key in ((0, 0), (0, 1), (1, 0))]
    assert len(set(draws)) == 3
    assert drawn(0, 1) == draws[1]
    assert torch.equal(torch.get_rng_state(), before)


class Blur(nn.Module):
    """A stand-in for a perceptual network: distance of means, with a parameter to be frozen."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.shapes = []

    def forward(self, recon, real):
        self.shapes.append(tuple(recon.shape))
        return (recon.mean((-1, -2)) - real.mean((-1, -2))).square().mean() * self.scale


def test_a_perceptual_module_of_the_users_own(make_trainer):
    module = Blur()
    trainer = make_trainer(
        perceptual_loss=module, perceptual_loss_weight=0.5, perceptual_num_frames=2
    )
    trainer.train()
    lines = [line for line in log_of(trainer) if "loss" in line]
    assert all(line["weight/perceptual"] == 0.5 and line["perceptual"] > 0 for line in lines)
    assert set(module.shapes[:6]) == {(2, 3, 2, 16, 16)}
    assert set(module.shapes[6:]) == {(1, 3, 5, 16, 16)}  # all frames, where it is measured
    assert log_of(trainer)[-1]["valid/perceptual"] > 0
    assert module.scale.grad is None
    assert not module.scale.requires_grad


def test_perceptual_weights_are_asked_for(make_trainer, without_type_checks):
    with pytest.raises(
        ValueError, match="perceptual_weights to a local file or 'torchvision:vgg16'"
    ):
        make_trainer(perceptual_loss_weight=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(adversarial_loss="hing"), "did you mean 'hinge'"),
        (dict(gradient_penalty="r2"), "use one of .*'r1'"),
        (dict(frame_adversarial_weight=-0.1), "frame_adversarial_weight is -0.1"),
        (dict(discriminator_start_step=5), "needs a discriminator that runs"),
        (dict(precision="fp16", video_adversarial_weight=0.1), "use 'bf16' or 'fp32'"),
        (dict(gradient_penalty_every=0), "gradient_penalty_every is 0"),
    ],
)
def test_mistakes_are_named(options, words, without_type_checks):
    with pytest.raises(ValueError, match=words):
        TrainingConfig(**options)


def test_what_yaml_and_json_make_of_tuples_builds_the_same(make_trainer):
    options = dict(video_adversarial_weight=0.1)
    one, other = (
        make_trainer(**options, video_discriminator=dict(dim=4, dim_mults=dim_mults))
        for dim_mults in ((1, 2), [1, 2])
    )
    names = [set(t.discriminators[0].network.state_dict()) for t in (one, other)]
    assert names[0] == names[1]

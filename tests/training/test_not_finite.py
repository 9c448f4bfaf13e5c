"""Losses and gradients that are not finite: skipped steps, their count, and the end of a run."""

import math
from types import SimpleNamespace

import pytest
import torch

from magvit2_pytorch.training.optimization import NonFiniteTraining
from magvit2_pytorch.training.task import finite_or_nan
from tests.conftest import QUANTIZERS
from tests.training.conftest import clips, micro_step
from tests.training.test_adversarial import EVERYTHING, ONE
from tests.training.test_trainer import assert_same, log_of

NAN, INF = float("nan"), float("inf")


def everything(trainer):
    return {n: t.clone() for n, t in trainer.state.gather(trainer.step, 0.0)[0].items()}


def breaking(trainer, steps, factor=1.0, more=0.0):
    """Multiplies the tokenizer's loss at these steps, and adds what has no gradient."""
    objective = trainer.objective

    def broken(real, out, step, generator):
        loss = objective(real, out, step, generator)
        return loss._replace(recon_loss=loss.recon_loss * factor + more) if step in steps else loss

    trainer.task.objective = broken


@pytest.mark.parametrize(("factor", "more"), [(NAN, 0.0), (INF, 0.0), (1.0, INF), (1.0, NAN)])
def test_a_bad_loss_or_gradient_skips_the_step(make_trainer, factor, more):
    """A loss that is infinite by a constant has a good gradient, and is skipped all the same."""
    trainer = make_trainer(num_train_steps=1, optimizer="muon", grad_accum_every=2)
    trainer.train()
    trainer.config.__dict__["num_train_steps"] = 2
    breaking(trainer, {1}, factor, more)
    before = everything(trainer)
    trainer.train()
    assert_same(everything(trainer), before, atol=0, rtol=0)
    assert (trainer.step, trainer.optimization.skips.total) == (2, 1)
    assert log_of(trainer)[-2]["skipped_steps"] == 1


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_bad_data_skips_the_step_of_every_quantizer(make_trainer, quantizer):
    """After the first batch, whose values are looked at."""
    late = dict(discriminator_start_step=1, adversarial_start_step=1, lecam_loss_weight=0.01)
    adversarial = EVERYTHING if quantizer == "lfq" else ONE | late
    trainer = make_trainer(quantizer=quantizer, **adversarial, num_train_steps=4)
    step, state = trainer.train_step, {}

    def fed(batches, meters):
        if trainer.step == 2:
            video = next(batches)
            video[0, 0, 0, 0, 0] = NAN
            batches = iter([video])
            state["before"] = everything(trainer)
        step(batches, meters)
        if trainer.step == 3:
            state["after"] = everything(trainer)

    trainer.train_step = fed
    trainer.train()
    assert_same(state["after"], state["before"], atol=0, rtol=0)
    assert trainer.optimization.skips.total == 1
    # They began a step later, and all saw it.
    assert {o.skips.total for o in trainer.optimizations.values()} == {1}
    assert log_of(trainer)[2]["video_discriminator_skipped_steps"] == 1
    final = everything(trainer)
    assert all(value.isfinite().all() for value in final.values())
    assert not torch.equal(final["video_discriminator.lecam.real_mean"],
                           state["after"]["video_discriminator.lecam.real_mean"])  # fmt: skip


def test_running_means_forget_all_parts_of_a_bad_step(make_trainer):
    """The first micro-batch is good, the second is not: neither leaves a trace."""
    trainer = make_trainer(**ONE, lecam_loss_weight=0.1, grad_accum_every=2, num_train_steps=2)
    discriminator = trainer.discriminators[0]
    video = torch.stack(clips(2))
    for values in (video, video * NAN):
        discriminator.compute_gradients(
            video, values.clone().requires_grad_(), micro_step(trainer, num_passes=2)
        )
    optimization = trainer.optimizations["video_discriminator"]
    discriminator.after_step(taken=optimization.apply_gradients() is not None)
    assert {n: float(t) for n, t in discriminator.lecam.state_dict().items()} == dict.fromkeys(
        ("real_mean", "fake_mean", "num_updates"), 0.0
    )
    assert optimization.skips.total == 1
    result = discriminator.compute_gradients(
        video, video.clone().requires_grad_(), micro_step(trainer, step=1)
    )
    discriminator.after_step(taken=optimization.apply_gradients() is not None)
    assert int(discriminator.lecam.num_updates) == 1
    means = [result.measured[f"video_{side}_logit"] for side in ("real", "fake")]
    torch.testing.assert_close(
        [discriminator.lecam.real_mean, discriminator.lecam.fake_mean], means
    )


def test_many_in_a_row_end_the_run_with_the_state_from_before(make_trainer):
    trainer = make_trainer(
        **ONE, num_train_steps=50, max_skipped_steps=3, checkpoint_every_step=2,
        validate_every_step=100, keep_checkpoints=1,
    )  # fmt: skip
    breaking(trainer, {1, *range(4, 50)}, factor=NAN)
    step, before = trainer.train_step, {}

    def remember(*args):
        if trainer.step == 4:
            before.update(everything(trainer))
        step(*args)

    trainer.train_step = remember
    with pytest.raises(NonFiniteTraining, match=r"3 steps in a row up to step 7 .*lower learning"):
        trainer.train()
    assert trainer.step == 7
    assert trainer.optimization.skips.total == 4
    # The one from before the first of them is kept too.
    assert list(trainer.checkpoints.steps()) == [6, 7]
    again = make_trainer("again", **ONE, num_train_steps=9)
    again.load(trainer.checkpoints_folder / "step-7")
    ours = everything(again)
    named = {n for n in ours if not n.startswith("video_discriminator")}  # they had good numbers
    assert_same({n: ours[n] for n in named}, {n: before[n] for n in named}, atol=0, rtol=0)
    again.train()
    assert again.step == 9
    assert again.optimization.skips.total == 4


def test_a_discriminator_in_a_bad_way_ends_the_run_too(make_trainer):
    trainer = make_trainer(**ONE, num_train_steps=50, max_skipped_steps=3)
    discriminator = trainer.optimizations["video_discriminator"]
    play = trainer.discriminators[0].loss
    trainer.discriminators[0].loss = SimpleNamespace(
        discriminator=lambda real, fake: play.discriminator(real, fake) + INF,
        generator=play.generator,
    )
    before = {n: t.clone() for n, t in discriminator.state_dict().items()}
    words = r"of the video discriminator that is not finite.*lower discriminator_learning_rate"
    with pytest.raises(NonFiniteTraining, match=words):
        trainer.train()
    assert_same(discriminator.state_dict(), before, atol=0, rtol=0)
    assert (trainer.step, discriminator.skips.total, trainer.optimization.skips.total) == (3, 3, 0)
    assert (trainer.checkpoints_folder / "step-3").is_dir()


def test_the_tokenizer_skips_what_a_discriminator_makes_infinite(make_trainer):
    trainer = make_trainer(**ONE, num_train_steps=2)
    play = trainer.discriminators[0].loss

    trainer.discriminators[0].loss = SimpleNamespace(
        discriminator=play.discriminator,
        generator=lambda real, fake: play.generator(real, fake) + INF,
    )
    trainer.train()
    assert [o.skips.total for o in trainer.optimizations.values()] == [2, 0]


@pytest.mark.parametrize("value", [0.0, -3.0, 1e38, NAN, INF, -INF])
def test_the_factor_of_a_loss(value):
    factor = float(finite_or_nan(torch.tensor(value, requires_grad=True)))
    assert factor == 1 if math.isfinite(value) else math.isnan(factor)


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["lfq", "fsq", "continuous-kl"])
def test_a_long_run_in_bf16_with_discriminators_stays_finite(make_trainer, quantizer):
    trainer = make_trainer(
        quantizer=quantizer, **EVERYTHING, precision="bf16", num_train_steps=400,
        learning_rate=1e-2, discriminator_learning_rate=1e-3, validate_every_step=1000,
    )  # fmt: skip
    trainer.train()
    assert [o.skips.total for o in trainer.optimizations.values()] == [0, 0, 0, 0]
    assert all(value.isfinite().all() for value in everything(trainer).values())
    psnrs = [line["psnr"] for line in log_of(trainer) if "psnr" in line]
    assert sum(psnrs[-20:]) > sum(psnrs[:20])

"""What a `Trainer` gives a task that is no tokenizer and says nothing of any of it.

`test_two_processes.py` trains it by two processes.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from magvit2_pytorch.training.dry_run import dry_run
from magvit2_pytorch.training.optimization import NonFiniteTraining
from magvit2_pytorch.training.tracking import read_log
from tests.training.denoiser import Denoiser, denoising
from tests.training.test_dry_run import CLOCK
from tests.training.test_trainer import assert_same


def state_of(trainer):
    return {n: t.clone() for n, t in trainer.state.gather(trainer.step, 0.0)[0].items()}


def log_of(trainer):
    lines = read_log(trainer.tracking.path)
    clock = CLOCK | {"waves_per_s"}
    return [{n: value for n, value in line.items() if n not in clock} for line in lines]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_and_is_saved(tmp_path, with_drawings, optimizer):
    trainer = denoising(tmp_path, num_train_steps=200, optimizer=optimizer)
    trainer.train()
    losses = [line["loss"] for line in log_of(trainer) if "loss" in line]
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    saved = load_file(tmp_path / "denoiser.safetensors")
    assert_same(saved, trainer.averaged_model.state_dict(), atol=0, rtol=0)
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_resuming_equals_never_stopping(tmp_path):
    whole = denoising(tmp_path / "a", checkpoint_every_step=3)
    whole.train()
    second = denoising(tmp_path / "b")
    second.resume(whole.checkpoints_folder / "step-3")
    second.train()
    assert_same(state_of(second), state_of(whole), atol=0, rtol=0)
    assert log_of(second) == [line for line in log_of(whole) if line["step"] > 3]


def test_accumulating_equals_the_large_batch(tmp_path, monkeypatch):
    # Each pass draws its own noise, so that it must not matter here.
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(0.5))
    small = denoising(tmp_path / "small", batch_size=2, grad_accum_every=2, optimizer="adam")
    large = denoising(tmp_path / "large", batch_size=4, optimizer="adam")
    for trainer in (small, large):
        trainer.train()
    for name, value in large.task.model.state_dict().items():
        torch.testing.assert_close(small.task.model.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_a_dry_run_changes_nothing(tmp_path):
    tried, plain = denoising(tmp_path / "tried"), denoising(tmp_path / "plain")
    before = state_of(tried)
    plan = dry_run(tried)
    assert_same(state_of(tried), before, atol=0, rtol=0)
    assert list(tmp_path.iterdir()) == []
    assert (plan.num_steps, plan.examples_per_step) == (8, 4)
    assert plan.parameters == {"denoiser": 8 * 16 + 16 + 16 * 8 + 8}
    assert "Plan of 8 steps on cpu" in str(plan)
    for trainer in (tried, plain):
        trainer.train()
    assert_same(state_of(tried), state_of(plain), atol=0, rtol=0)
    assert log_of(tried) == log_of(plain)


def test_the_best_is_that_of_its_own_measure(tmp_path, monkeypatch):
    errors = iter([0.5, 0.2, 0.3, 0.4])
    validate = Denoiser.validate

    def measured(*args):
        return validate(*args)._replace(values={"valid/error": next(errors)})

    monkeypatch.setattr(Denoiser, "validate", measured)
    trainer = denoising(tmp_path, validate_every_step=2)
    trainer.train()
    text = (trainer.checkpoints_folder / "best" / "validation.json").read_text()
    assert json.loads(text) == {"step": 4, "valid/error": 0.2}


def test_steps_that_are_not_finite_are_skipped_and_end_the_run(tmp_path, monkeypatch):
    step = Denoiser.step
    monkeypatch.setattr(
        Denoiser, "step", lambda self, batch, micro: step(self, batch * 1e30, micro)
    )
    trainer = denoising(tmp_path, max_skipped_steps=3)
    before = {n: p.clone() for n, p in trainer.task.model.state_dict().items()}
    with pytest.raises(NonFiniteTraining, match=r"3 steps in a row .* lower learning_"):
        trainer.train()
    assert_same(trainer.task.model.state_dict(), before, atol=0, rtol=0)


def test_a_model_that_differs_is_refused_when_resuming(tmp_path, monkeypatch):
    denoising(tmp_path).train()
    monkeypatch.setattr(Denoiser, "describe", lambda self: {"width": 32})
    with pytest.raises(ValueError, match="the denoiser's width is 16 in the checkpoint and 32"):
        denoising(tmp_path).resume("latest")

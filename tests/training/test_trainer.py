"""The trainer's main promises."""

import json
import os
import signal
from itertools import cycle

import pytest
import torch

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.layers.stateful import Residual
from magvit2_pytorch.training.tracking import read_log
from tests.conftest import build
from tests.training.conftest import clips


def weights(trainer):
    return {
        **trainer.tokenizer.state_dict(),
        **{f"ema.{k}": v for k, v in trainer.ema.state_dict().items()},
    }


def assert_same(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


def log_of(trainer):
    return read_log(trainer.tracking.path)


@pytest.mark.parametrize(("optimizer", "num_steps"), [("adamw", 40), ("muon", 100)])
def test_training_lowers_the_loss(make_trainer, optimizer, num_steps):
    trainer = make_trainer(num_train_steps=num_steps, optimizer=optimizer)
    trainer.train()
    losses = [line["reconstruction"] for line in log_of(trainer) if "reconstruction" in line]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_warm_up_reaches_the_learning_rate_asked_for(make_trainer, schedule):
    trainer = make_trainer(
        num_train_steps=40, warmup_steps=4, learning_rate=2e-5, schedule=schedule
    )
    rates = [trainer.optimization.set_learning_rate(step, 0.0) for step in range(40)]
    if schedule == "cosine":  # the others differ in these numbers only
        trainer.train()
        log = [line["learning_rate"] for line in log_of(trainer) if "learning_rate" in line]
        assert log == pytest.approx(rates)
    assert len(rates) == 40
    assert rates[0] == pytest.approx(2e-5 / 4)
    assert max(rates) == pytest.approx(2e-5)
    assert rates[3] == pytest.approx(2e-5)
    assert rates[-1] == pytest.approx(2e-5) if schedule == "constant" else rates[-1] < 2e-6


QUANTIZERS = ["fsq", "lfq", "vq", "vq-sim", "continuous-kl"]


@pytest.mark.parametrize(
    ("quantizer", "optimizer"), zip(QUANTIZERS, cycle(["adamw", "muon"]), strict=False)
)
def test_resuming_equals_never_stopping(make_trainer, quantizer, optimizer):
    options = dict(quantizer=quantizer, optimizer=optimizer, grad_accum_every=2)
    whole = make_trainer("whole", **options, checkpoint_every_step=3)
    whole.train()
    second = make_trainer("second", **options)
    second.load(whole.checkpoints_folder / "step-3")
    assert second.step == 3
    second.train()
    assert second.step == 6
    assert_same(weights(second), weights(whole), atol=0, rtol=0)


@pytest.mark.parametrize("quantizer", ["fsq", "lfq", "lfq-norm", "vq", "vq-sim", "vq-residual"])
def test_a_frozen_encoder_keeps_all_codes(make_trainer, quantizer):
    options = dict(frame_adversarial_weight=0.1, adaptive_adversarial_weight=True)
    options |= dict(optimizer="muon", freeze_encoder=True, quantizer=quantizer)
    trainer = make_trainer(**options, num_train_steps=3)
    before = {name: value.clone() for name, value in trainer.tokenizer.state_dict().items()}
    video = clips()[0][None]
    codes = trainer.ema_tokenizer.tokenize(video)
    trainer.train()
    for tokenizer in (trainer.tokenizer, trainer.ema_tokenizer):
        after = tokenizer.state_dict()
        same = {name for name in after if torch.equal(after[name], before[name])}
        assert {name for name in after if not name.startswith("decoder.")} <= same
        assert not {name for name in after if name.startswith("decoder.")} <= same
    assert torch.equal(trainer.ema_tokenizer.tokenize(video), codes)
    if quantizer == "fsq":
        other = make_trainer("other", **options | dict(freeze_encoder=False))
        with pytest.raises(ValueError, match="freeze_encoder is true in the checkpoint"):
            other.load(trainer.checkpoints_folder / "step-3")


def test_a_step_is_seen_through_and_saved_on_ctrl_c(make_trainer, capsys):
    trainer = make_trainer(num_train_steps=100)
    step = trainer.train_step

    def interrupted(*args):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        step(*args)

    trainer.train_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.step == 3
    folder = trainer.checkpoints_folder / "step-3"
    assert f'trainer.train(resume="{folder}")' in capsys.readouterr().out
    resumed = make_trainer("resumed", num_train_steps=100)
    resumed.load(folder)
    assert_same(weights(resumed), weights(trainer), atol=0, rtol=0)


def test_accumulated_micro_batches_equal_one_large_batch(make_trainer):
    small = make_trainer("small", batch_size=2, grad_accum_every=3)
    large = make_trainer("large", batch_size=6, grad_accum_every=1)
    video = torch.stack(clips(6))
    micro, whole = iter(video.split(2)), iter([video])
    from magvit2_pytorch.training.meters import Meters

    small.train_step(micro, Meters(small.task))
    large.train_step(whole, Meters(large.task))
    # Adam's first step is the gradient's sign: compare what entered it.
    for ours, theirs in zip(
        small.optimizers[0].state.values(), large.optimizers[0].state.values(), strict=True
    ):
        torch.testing.assert_close(ours["exp_avg"], theirs["exp_avg"], atol=1e-7, rtol=1e-4)


def test_values_out_of_range_are_named_before_the_first_step(make_trainer):
    trainer = make_trainer(dataset=[clip * 127 + 127 for clip in clips()])
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        trainer.train()
    assert trainer.step == 0


def test_a_run_leaves_a_tokenizer_curves_and_pictures(make_trainer, with_drawings):
    trainer = make_trainer(validate_every_step=3)
    trainer.train()
    folder = trainer.results_folder
    loaded = VideoTokenizer.from_pretrained(folder / "tokenizer")
    video = clips(1)[0][None]
    assert torch.equal(loaded.tokenize(video), trainer.tokenize(video))
    assert torch.equal(loaded.tokenize(video), trainer.ema_tokenizer.tokenize(video))
    for name in ("curves.png", "step-6-clip-0.png", "step-6-clip-0.mp4", "step-3-clip-0.png"):
        assert (folder / name).stat().st_size > 0
    valid = [line["step"] for line in log_of(trainer) if "valid/psnr" in line]
    assert valid == [3, 6]
    assert (trainer.checkpoints_folder / "step-6").is_dir()


def test_every_term_is_logged_with_its_weight(make_trainer):
    trainer = make_trainer(quantizer="lfq", num_train_steps=2)
    trainer.train()
    line = log_of(trainer)[0]
    total = sum(
        line[f"weight/{n}"] * line[n]
        for n in ("reconstruction", *trainer.tokenizer.quantizer.loss_weights(0))
    )
    assert line["loss"] == pytest.approx(total, rel=1e-4)
    for name in ("psnr", "grad_norm", "codebook_usage", "perplexity", "steps_per_s", "data_wait"):
        assert name in line


def test_time_is_a_budget_too(make_trainer):
    trainer = make_trainer(num_train_steps=10**6, max_duration_s=1.0, schedule="linear")
    trainer.train()
    assert 0 < trainer.step < 10**5
    rates = [line["learning_rate"] for line in log_of(trainer) if "learning_rate" in line]
    assert rates[-1] < 0.5 * rates[0]


def test_options_are_strict_and_not_shared(make_trainer):
    with pytest.raises(ValueError, match="learning_rate"):
        make_trainer(learning_rat=1e-3)
    with pytest.raises(ValueError, match="dataset_folder"):
        make_trainer(dataset=None)
    with pytest.raises(FileNotFoundError):
        make_trainer(dataset=None, dataset_folder="/nowhere/at/all")


def test_images_train_too(make_trainer):
    trainer = make_trainer(dataset=[clip[:, 0] for clip in clips()], dataset_type="images")
    trainer.train()
    assert trainer.step == 6


@pytest.mark.parametrize("precision", ["bf16"])
def test_low_precision_trains(make_trainer, precision):
    trainer = make_trainer(precision=precision, quantizer="lfq", num_train_steps=20)
    trainer.train()
    losses = [line["reconstruction"] for line in log_of(trainer) if "reconstruction" in line]
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in trainer.tokenizer.parameters())


def test_wandb_and_tensorboard_get_what_the_log_gets(make_trainer, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer = make_trainer(
        use_wandb_tracking=True, use_tensorboard_tracking=True, num_train_steps=2
    )
    with trainer.trackers(project_name="videos", run_name="first"):
        trainer.train()
    assert list(trainer.results_folder.rglob("offline-run-*"))
    assert list(trainer.results_folder.rglob("events.out.tfevents.*"))
    assert json.loads(trainer.tracking.path.read_text().splitlines()[0])["step"] == 1


@pytest.mark.parametrize("asked", ["tokenizer", "trainer", None])
def test_activations_are_recomputed_whoever_asked_for_it(asked):
    tokenizer = build("residual")
    if asked == "tokenizer":
        tokenizer.checkpoint_activations()
    VideoTokenizerTrainer(tokenizer, dataset=clips(), checkpoint_activations=asked == "trainer")
    layers = [module for module in tokenizer.modules() if isinstance(module, Residual)]
    assert layers
    assert {layer.checkpointed for layer in layers} == {asked is not None}

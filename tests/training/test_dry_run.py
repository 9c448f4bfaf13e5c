"""A dry run does everything once, estimates the costs, and changes nothing."""

import copy
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from magvit2_pytorch.training import dry_run as dry_run_module
from magvit2_pytorch.training import plan as plan_module
from magvit2_pytorch.training.checkpoints import CheckpointNotSaved
from magvit2_pytorch.training.dry_run import Costs, _duration
from magvit2_pytorch.training.tokenizer_task import TokenizerTask
from magvit2_pytorch.training.tracking import read_log
from magvit2_pytorch.training.trainer import Trainer
from tests.training.conftest import clips
from tests.training.test_tracking import CLOCK, Distance

LATE = dict(
    frame_adversarial_weight=0.1,
    frame_discriminator=dict(dim=4),
    multiscale_adversarial_weight=0.1,
    multiscale_discriminator=dict(dim=4, scales=((3, 1),)),
    discriminator_start_step=2,
    adversarial_start_step=4,
    adversarial_ramp_steps=2,
    gradient_penalty_weight=1.0,
    gradient_penalty_every=3,
    lecam_loss_weight=0.01,
)
IMAGES = dict(image_dataset=[clip[:, 0] for clip in clips()], image_frac=0.4, image_batch_size=2)

RUNS = {
    "plain": dict(),
    "adversarial": dict(quantizer="lfq", **LATE, adaptive_adversarial_weight=True),
    "muon-accumulated": dict(optimizer="muon", grad_accum_every=2, ema_update_every=2),
    "images": dict(**IMAGES, precision="bf16"),
    "continuous": dict(quantizer="continuous-kl", optimizer="adam"),
}


class DrawnClips:
    """A dataset that draws from everybody's random generators."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        factor = (random.random() + np.random.rand() + float(torch.rand(()))) / 6 + 0.5
        return clips()[index] * factor


def state_of(trainer):
    return trainer.state.gather(trainer.step, trainer.elapsed_s)


def assert_same_state(ours, theirs):
    tensors, values = zip(ours, theirs, strict=True)
    assert tensors[0].keys() == tensors[1].keys()
    for name, value in tensors[0].items():
        assert torch.equal(value, tensors[1][name]), name
    for value in values:
        del value["training"], value["elapsed_s"]
    assert values[0] == values[1]


def log_without_clock(trainer):
    lines = read_log(trainer.tracking.path)
    return [{n: value for n, value in line.items() if n not in CLOCK} for line in lines]


def seed_everything():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("without_type_checks")  # they draw from Python's generator
def test_training_after_it_is_training_without_it(make_trainer, tmp_path, name):
    ended = []
    for kind in ("without", "after"):
        trainer = make_trainer(kind, dataset=DrawnClips(), **RUNS[name])
        seed_everything()
        if kind == "after":
            trainer.dry_run()
            assert sorted(path.name for path in tmp_path.iterdir()) == ["without"]
        trainer.train()
        ended.append((state_of(trainer), log_without_clock(trainer)))
    assert_same_state(ended[0][0], ended[1][0])
    assert ended[0][1] == ended[1][1]


def test_so_it_is_in_the_middle_of_one(make_trainer, tmp_path):
    whole = make_trainer("whole", quantizer="lfq", checkpoint_every_step=3, **LATE)
    whole.train()
    resumed = make_trainer("resumed", quantizer="lfq", **LATE)
    resumed.load(whole.checkpoints_folder / "step-3")
    before = sorted(tmp_path.rglob("*"))
    plan = resumed.dry_run()
    assert sorted(tmp_path.rglob("*")) == before
    assert (resumed.step, plan.num_steps) == (3, 3)
    resumed.train()
    assert_same_state(state_of(resumed), state_of(whole))


@pytest.fixture
def written(monkeypatch):
    """Files that there were in the temporary folder, with their sizes, before it went."""
    found = {}
    remove = shutil.rmtree

    def remember(folder, *args, **kwargs):
        for path in Path(folder).rglob("*") if ".dry-run" in Path(folder).name else ():
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path.stat().st_size
        remove(folder, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", remember)
    return found


def test_it_does_all_that_training_will_do(make_trainer, monkeypatch, written):
    trainer = make_trainer(
        quantizer="lfq",
        num_train_steps=20,
        perceptual_loss=Distance(),
        perceptual_loss_weight=0.5,
        **LATE,
        **IMAGES,
    )
    terms, videos, steps = [], [], []
    step, train_step = TokenizerTask.step, Trainer.train_step

    def recorded(self, video, micro):
        measured = step(self, video, micro)
        terms.extend(measured)
        videos.append(video.shape)
        return measured

    def counted(self, *args):
        before = [p.clone() for p in trainer.ema_tokenizer.parameters()]
        train_step(self, *args)
        after = trainer.ema_tokenizer.parameters()
        steps.append(any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)))

    monkeypatch.setattr(TokenizerTask, "step", recorded)
    monkeypatch.setattr(Trainer, "train_step", counted)
    trainer.dry_run()
    assert steps == [True] * 4  # two of clips, two of images, each with new averages
    assert [tuple(shape) for shape in videos] == [(2, 3, 5, 16, 16)] * 2 + [(2, 3, 1, 16, 16)] * 2
    for name in ("frame", "multiscale"):
        assert terms.count(f"{name}_gradient_penalty") == 2  # each kind's first step
        for term in ("discriminator", "adversarial", "lecam", "real_logit"):
            assert terms.count(f"{name}_{term}") == 4
    expected = {
        *(f"{state}/{name}" for state in ("before", "clips/checkpoints/step-7")
          for name in ("state.json", "tensors.safetensors")),
        *(f"clips/results/{name}" for name in (
            "step-7-clip-0.png", "step-7-clip-0.mp4", "step-7-image-0.png",
            "tokenizer/config.json", "tokenizer/model.safetensors", "curves.png",
        )),
    }  # fmt: skip
    assert expected <= written.keys()


def test_the_plan_says_what_is(make_trainer, written):
    options = dict(
        dataset=clips(20),
        quantizer="lfq-several",
        num_train_steps=20,
        validate_every_step=5,
        checkpoint_every_step=10,
        valid_frac=0.2,
        grad_accum_every=2,
        **LATE,
        **IMAGES,
    )
    plan = make_trainer("planned", **options).dry_run()
    trainer = make_trainer("done", **options)
    trainer.train()
    tokenizer = trainer.tokenizer
    codes = tokenizer.tokenize(clips(1)[0][None])

    assert codes.numel() == 960 == 3 * (5 * 16 * 16) / 4
    assert plan.parameters == {
        "tokenizer": sum(p.numel() for p in tokenizer.parameters()),
        **{
            f"{discriminator.name} discriminator": sum(
                p.numel() for p in discriminator.network.parameters()
            )
            for discriminator in trainer.discriminators
        },
    }
    num_bytes = 4 * plan.parameters["tokenizer"]
    held = plan.held_memory
    assert held["weights"] == held["gradients"] == held["average"] == num_bytes
    num_tensors = len(list(tokenizer.parameters()))
    # Two moments, and a count for each tensor.
    assert held["moments"] == 2 * num_bytes + 4 * num_tensors
    assert held["frame discriminator"] == pytest.approx(
        16 * plan.parameters["frame discriminator"], rel=0.01
    )
    assert plan.total_memory > plan.peak_memory > sum(held.values())

    num_clips, images = len(trainer.data), len(trainer.images)
    held_out = len(trainer.valid_data) + len(trainer.valid_images)
    assert held_out == 20 + 6 - num_clips - images
    epochs = 20 * 2 * 2 * 0.6 / num_clips
    assert (plan.num_steps, plan.num_validations) == (20, 4)
    saved = [p.stat().st_size for p in (trainer.checkpoints_folder / "step-20").iterdir()]
    assert plan.checkpoint_bytes == pytest.approx(sum(saved), abs=200)
    results = {n: size for n, size in written.items() if n.startswith("images/results/")}
    pictures = sum(size for name, size in results.items() if "/step-" in name)
    # Three checkpoints, as there are no more, the best, and the one being written.
    others = sum(results.values()) - pictures
    assert plan.disk_bytes == 5 * plan.checkpoint_bytes + 4 * pictures + others
    assert abs(plan.free_bytes - shutil.disk_usage(trainer.results_folder).free) < 1e9
    for shown in (
        "Plan of 20 steps on cpu, 1 process, fp32",
        f"{plan.parameters['tokenizer']:,} parameters",
        f"{plan.parameters['multiscale discriminator']:,} parameters",
        "5 x 16 x 16 to 5 x 8 x 8: 960 tokens, 3.0000 bits per pixel",
        f"{num_clips} clips and {images} images to train on, {held_out} held out, 0 files skipped",
        f"4 clips; {epochs:.2f} epochs",
        "4 validations",
    ):
        assert shown in str(plan)


def test_frozen_weights_have_no_gradients_in_memory(make_trainer):
    trainer = make_trainer(freeze_encoder=True)
    held, model = trainer.dry_run().held_memory, trainer.tokenizer
    frozen = [*model.encoder.parameters(), *model.quantizer.parameters()]
    assert held["weights"] - held["gradients"] == sum(p.nbytes for p in frozen) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="others have no better record")
def test_the_peak_is_that_of_this_process_alone():
    """The kernel's usual record includes the peak of the process that started this one."""
    large = torch.ones(100_000_000)
    code = "from magvit2_pytorch.runtime import *; print(peak_memory(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5e7 < int(done.stdout) < psutil.Process().memory_info().rss - large.nbytes / 4


def test_continuous_latents_are_no_tokens(make_trainer):
    plan = make_trainer(quantizer="continuous").dry_run()
    assert "320 latents\n" in str(plan)


def simulated(measured, config, step, elapsed_s):
    """Steps and seconds of a run, one step after the other, each validation the best so far."""
    start, started = step, elapsed_s
    while step < config.num_train_steps:
        if config.max_duration_s is not None and elapsed_s >= config.max_duration_s:
            break
        step, elapsed_s = step + 1, elapsed_s + measured.step_s
        validates = step % config.validate_every_step == 0
        elapsed_s += validates * (measured.validation_s + measured.save_s)
        elapsed_s += (step % config.checkpoint_every_step == 0) * measured.save_s
    return step - start, elapsed_s - started + measured.validation_s + measured.save_s


@pytest.mark.parametrize("limit", [None, 1000.0, 60.0, 1e6])
@pytest.mark.parametrize(("step", "elapsed_s"), [(0, 0.0), (400, 100.0)])
def test_the_time_is_that_of_a_simulated_run(make_trainer, limit, step, elapsed_s):
    trainer = make_trainer(
        num_train_steps=5000,
        validate_every_step=100,
        checkpoint_every_step=250,
        max_duration_s=limit,
    )
    measured = Costs(step_s=0.25, validation_s=6.0, save_s=1.5)
    trainer.step, trainer.elapsed_s = step, elapsed_s
    num_steps, duration_s = _duration(trainer, measured)
    expected_steps, expected_s = simulated(measured, trainer.config, step, elapsed_s)
    rare_s = measured.validation_s + 2 * measured.save_s
    assert num_steps == pytest.approx(expected_steps, abs=rare_s / measured.step_s)
    assert duration_s == pytest.approx(expected_s, abs=2 * rare_s)
    if limit is None:
        assert num_steps == 5000 - step


@pytest.mark.parametrize("start", [0, 3, 4, 5, 100])
def test_the_step_tried_is_one_at_which_everything_runs(make_trainer, start):
    trainer = make_trainer(**LATE)
    step = trainer.task.full_step(start)
    discriminator = trainer.discriminators[0]
    assert discriminator.is_active(step)
    assert discriminator.adversarial_weight(step) > 0
    assert discriminator.has_penalty(step)
    assert max(4, start) <= step < max(4, start) + 3
    assert make_trainer("plain").task.full_step(0) == 0


# What goes wrong


def assert_untouched(trainer, state, folder, files):
    assert_same_state(state_of(trainer), state)
    assert sorted(folder.rglob("*")) == files
    assert trainer.step == 0
    parameters = [p for g in trainer.optimizers[0].param_groups for p in g["params"]]
    assert all(p.grad is None for p in parameters)
    for discriminator in trainer.discriminators:
        assert all(p.grad is None for p in discriminator.network.parameters())
        assert not discriminator._logits  # else a later step would average them in


def snapshot(trainer):
    tensors, values = state_of(trainer)
    return {name: value.clone() for name, value in tensors.items()}, values


class Broken:
    """A dataset that stops giving clips after some."""

    def __init__(self, number, action):
        self.left, self.action = number, action

    def __len__(self):
        return 6

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            self.action()
        return clips()[index]


@pytest.mark.parametrize(
    ("number", "kind"), [(0, "error"), (1, "ctrl-c"), (3, "error"), (3, "ctrl-c")]
)
def test_an_error_or_ctrl_c_in_between_changes_nothing_either(make_trainer, tmp_path, number, kind):
    def fail():
        if kind == "error":
            raise ValueError("no more clips")
        os.kill(os.getpid(), signal.SIGINT)

    trainer = make_trainer(dataset=Broken(number, fail), batch_size=1, grad_accum_every=2, **LATE)
    before, files = snapshot(trainer), sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError if kind == "error" else KeyboardInterrupt):
        trainer.dry_run()
    assert_untouched(trainer, before, tmp_path, files)


def test_what_training_would_refuse_is_refused(make_trainer, tmp_path):
    trainer = make_trainer(dataset=[clip * 127 + 127 for clip in clips()])
    before = snapshot(trainer)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        trainer.dry_run()
    assert_untouched(trainer, before, tmp_path, [])


def test_a_full_disk_is_an_error(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    before = snapshot(trainer)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CheckpointNotSaved):
        trainer.dry_run()
    assert_untouched(trainer, before, tmp_path, [])


def test_a_gpu_that_is_too_small_is_told_with_what_to_do(make_trainer, tmp_path):
    trainer = make_trainer()
    before = snapshot(trainer)

    def full(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    trainer.optimization.apply_gradients = full
    with pytest.raises(MemoryError, match=r"lower batch_size from 2.*20\.00 GiB"):
        trainer.dry_run()
    assert_untouched(trainer, before, tmp_path, [])


def test_numbers_that_are_not_finite_are_in_the_plan(make_trainer):
    trainer = make_trainer(max_skipped_steps=1)
    objective = trainer.objective

    def broken(*args):
        loss = objective(*args)
        return loss._replace(recon_loss=loss.recon_loss * float("nan"))

    trainer.task.objective = broken
    plan = trainer.dry_run()
    assert plan.num_skipped_steps == 2
    assert any("2 steps of the dry run" in warning for warning in plan.warnings())
    assert trainer.optimization.skips.total == trainer.optimization.skips.in_a_row == 0
    trainer.task.objective = objective
    trainer.train()
    assert trainer.step == 6


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A plan with nothing to complain of, and its task."""
    from tests.training.conftest import make_trainer

    make = make_trainer.__wrapped__(tmp_path_factory.mktemp("plan"))
    trainer = make(quantizer="lfq", num_train_steps=1000, **LATE)
    return replace(trainer.dry_run(), data_wait=0.1), trainer.task


def with_options(plan, task, model=None, **options):
    """The plan of the task with other options, or another model."""
    task = copy.copy(task)
    task.model, task.config = model or task.model, replace(task.config, **options)
    batch = torch.zeros(2, 3, 5, 16, 16)
    lines = task.plan(batch, plan.num_steps, plan.examples_per_step)
    return replace(plan, config=task.config, task=lines)


def with_codes(model, number):
    model = copy.deepcopy(model)
    model.quantizer.codebook_size = number
    return model


def test_a_good_plan_has_no_warnings(planned):
    plan, task = planned
    assert plan.warnings() == with_options(plan, task).warnings() == []
    assert str(with_options(plan, task)) == str(plan)
    assert "!" not in str(plan)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p, t: replace(p, disk_bytes=p.free_bytes + 1), "free: lower keep_checkpoints"),
        (lambda p, t: replace(p, peak_memory=91, total_memory=100), "lower batch_size"),
        (lambda p, t: replace(p, data_wait=0.51), "raise num_workers"),
        (
            lambda p, t: with_options(p, t, warmup_steps=101),
            "warm-up takes 100 steps instead of 101",
        ),
        (
            lambda p, t: with_options(p, t, adversarial_start_step=1000),
            "never has an adversarial loss: .* 1000",
        ),
        (
            lambda p, t: with_options(
                p, t, adversarial_start_step=1000, discriminator_start_step=1000
            ),
            "discriminators never learn",
        ),
        (
            lambda p, t: with_options(p, t, with_codes(t.model, 2**20)),
            r"640,000 tokens, fewer than the 1,048,576",
        ),
        (lambda p, t: replace(p, num_skipped_steps=1), "not finite"),
    ],
)
def test_what_looks_wrong_is_said(planned, change, said):
    plan = change(*planned)
    assert len([w for w in plan.warnings() if re.search(said, w)]) == 1
    assert str(plan).count("\n  ! ") == len(plan.warnings())


def test_fp16_finds_its_scale_by_skipping(planned):
    plain = dict(frame_adversarial_weight=0.0, multiscale_adversarial_weight=0.0)
    plan = with_options(*planned, precision="fp16", **plain)
    assert replace(plan, num_skipped_steps=2).warnings() == []


def test_times_and_sizes_read_well():
    times = {0.3: "0 s", 59.0: "59 s", 61.0: "1 min 1 s", 3600.0: "1 h", 90_061.0: "1 d 1 h"}
    assert {seconds: plan_module._duration(seconds) for seconds in times} == times
    sizes = {12: "0 kB", 1501: "2 kB", 2_500_000: "2.5 MB", 3 * 10**9: "3.0 GB"}
    assert {number: plan_module._size(number) for number in sizes} == sizes


def test_the_folder_is_on_the_disk_of_the_checkpoints(tmp_path):
    assert dry_run_module._existing_parent(tmp_path / "a" / "b") == tmp_path
    assert dry_run_module._existing_parent(tmp_path) == tmp_path

"""Resuming: choice of the checkpoint, changed options, and refusal without side effects."""

import gc
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magvit2_pytorch.data.split import read_held_out
from magvit2_pytorch.training.checkpoints import (
    CHECKSUMS_FILE,
    STATE_FILE,
    TENSORS_FILE,
    DamagedCheckpoint,
    _checksum,
)
from magvit2_pytorch.training.optimizer import lr_scale
from tests.data.clip_files import make_video
from tests.training.test_adversarial import ONE, TINY
from tests.training.test_trainer import assert_same, log_of, weights


def everything(trainer):
    """All state, and how far it is."""
    tensors, values = trainer.state.gather(trainer.step, trainer.elapsed_s)
    return {name: tensor.clone() for name, tensor in tensors.items()}, json.dumps(values)


def write_checksums(folder):
    names = (TENSORS_FILE, STATE_FILE)
    (folder / CHECKSUMS_FILE).write_bytes(b"".join(_checksum(folder / name) for name in names))


@pytest.mark.parametrize("which", ["auto", "latest", "a folder"])
def test_train_goes_on_from_the_latest(make_trainer, which, capsys):
    first = make_trainer("same", num_train_steps=4, checkpoint_every_step=2, schedule="constant")
    first.train()
    assert "Resuming" not in capsys.readouterr().out
    # What the first one was trained with is taken up again, all but its schedule.
    second = make_trainer("same", schedule="constant")
    second.train(resume=first.checkpoints_folder / "step-4" if which == "a folder" else which)
    said = capsys.readouterr().out
    assert "step-4, step 4" in said
    assert "num_train_steps 4 -> 6, checkpoint_every_step 2 -> 1000" in said
    assert "results_folder" not in said
    constant = make_trainer("constant", schedule="constant")
    constant.train()
    assert_same(weights(second), weights(constant), atol=0, rtol=0)


def test_auto_begins_where_there_is_nothing(make_trainer):
    trainer = make_trainer()
    assert trainer.resume("auto") is None
    trainer.train(resume="auto")
    assert trainer.step == 6
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        make_trainer("other").train(resume="latest")


def test_the_schedule_follows_the_new_number_of_steps(make_trainer):
    make_trainer("run", num_train_steps=6, schedule="linear").train()
    trainer = make_trainer("run", num_train_steps=12, schedule="linear")
    trainer.train(resume="auto")
    rates = {x["step"]: x["learning_rate"] for x in log_of(trainer) if "learning_rate" in x}
    expected = {s: 3e-3 * lr_scale(s - 1, 6 if s <= 6 else 12, 0, "linear") for s in range(1, 13)}
    assert rates == pytest.approx(expected)
    fewer = make_trainer("run", num_train_steps=3)
    fewer.train(resume="auto")
    assert fewer.step == 12  # there was nothing left to do


def test_a_damaged_one_is_passed_over(make_trainer):
    options = dict(checkpoint_every_step=2, validate_every_step=100)
    whole = make_trainer("whole", **options)
    whole.train()
    (whole.checkpoints_folder / "step-6" / STATE_FILE).write_text("{}")
    second = make_trainer("whole", **options)
    with pytest.raises(DamagedCheckpoint, match=r"state\.json.* resume from .*step-4"):
        second.resume("latest")
    with pytest.warns(UserWarning, match=r"resuming from .*step-4 instead"):
        second.train(resume="auto")
    assert_same(weights(second), weights(whole), atol=0, rtol=0)


REFUSED = [
    (dict(quantizer="lfq"), "codebook_size is null in the checkpoint and 64 here"),
    (dict(layers=("residual", "compress_space")), "tokenizer's layers is"),
    (dict(optimizer="muon"), 'optimizer is "adamw" in the checkpoint and "muon" here'),
    (dict(video_discriminator=TINY | dict(dim=8)), r'video_discriminator is .*"dim": 4.*"dim": 8'),
    (dict(video_discriminator=TINY | dict(num_frames=3)), "video_discriminator is"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=[next(iter(o)) for o, _ in REFUSED])
def test_what_does_not_fit_is_refused_with_the_difference_and_nothing_changed(
    make_trainer, options, words
):
    make_trainer("run", **ONE, num_train_steps=2).train()
    trainer = make_trainer("run", **(ONE | dict(num_train_steps=2) | options))
    before, log = everything(trainer), log_of(trainer)
    with pytest.raises(ValueError, match=words):
        trainer.train(resume="latest")
    after = everything(trainer)
    assert_same(after[0], before[0], atol=0, rtol=0)
    assert after[1] == before[1]
    assert log_of(trainer) == log


def test_options_that_tensors_do_not_depend_on_may_change(make_trainer):
    make_trainer("run", **ONE, num_train_steps=2).train()
    changed = dict(
        learning_rate=1e-4, betas=(0.5, 0.9), weight_decay=0.1, batch_size=3, grad_accum_every=2,
        num_train_steps=4, video_adversarial_weight=0.2, adversarial_loss="relativistic",
        lecam_loss_weight=0.1, precision="bf16", max_grad_norm=None, seed=1, ema_decay=0.9,
        keep_checkpoints=1, reconstruction_loss="l1", discriminator_betas=(0.5, 0.9),
    )  # fmt: skip
    trainer = make_trainer("run", **(ONE | changed))
    trainer.train(resume="latest")
    assert trainer.step == 4
    assert trainer.optimizers[0].param_groups[0]["betas"] == (0.5, 0.9)


@pytest.mark.parametrize(
    "part", ["tokenizer.weights.", "ema.", "tokenizer.optimizer_0.", "video_discriminator."]
)
@pytest.mark.parametrize("fault", ["shape", "too many"])
def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded(make_trainer, part, fault):
    first = make_trainer("run", **ONE, num_train_steps=2)
    first.train()
    folder = first.checkpoints_folder / "step-2"
    tensors = load_file(folder / TENSORS_FILE)
    name = [n for n, t in tensors.items() if n.startswith(part) and t.ndim > 1][-1]
    if fault == "shape":
        tensors[name] = tensors[name][:1].repeat(7, *[1] * (tensors[name].ndim - 1))
    else:
        index = name.removeprefix(part).split(".")[0]
        extra = name.replace(f"{index}.", "999.", 1) if index.isdecimal() else f"{part}lecam.other"
        tensors[extra] = torch.zeros(2)
    save_file(tensors, folder / TENSORS_FILE)
    write_checksums(folder)
    trainer = make_trainer("other", **ONE, num_train_steps=2)
    before = everything(trainer)
    with pytest.raises(ValueError, match=f"does not fit this training: {part[:-1]}"):
        trainer.load(folder)
    after = everything(trainer)
    assert_same(after[0], before[0], atol=0, rtol=0)
    assert after[1] == before[1]


def test_a_tokenizer_option_that_is_newer_than_the_checkpoint_has_its_default(make_trainer):
    first = make_trainer("run", num_train_steps=2)
    first.train()
    folder = first.checkpoints_folder / "step-2"
    values = json.loads((folder / STATE_FILE).read_text())
    del values["tokenizer"]["pad_mode"]
    (folder / STATE_FILE).write_text(json.dumps(values))
    write_checksums(folder)
    trainer = make_trainer("run", num_train_steps=3)
    trainer.train(resume="latest")
    assert trainer.step == 3


def test_counts_go_on(make_trainer):
    first = make_trainer("run", **ONE, num_train_steps=2)
    model, discriminator = first.optimizations.values()
    model.skips.total, discriminator.skips.total = 5, 7
    first.train()
    trainer = make_trainer("run", **ONE)
    trainer.resume("latest")
    assert [o.skips.total for o in trainer.optimizations.values()] == [5, 7]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_the_file_does_not_stay_mapped(make_trainer, optimizer):
    """One moment that is a view of it keeps all of it, also after it is removed."""
    make_trainer("run", num_train_steps=2, optimizer=optimizer).train()
    trainer = make_trainer("run", num_train_steps=3, optimizer=optimizer)
    folder = trainer.resume("latest")
    gc.collect()
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert all(x.state for x in trainer.optimizers)


def test_what_no_checkpoint_is(make_trainer):
    trainer = make_trainer()
    trainer.results_folder.mkdir(parents=True, exist_ok=True)
    with pytest.raises(FileNotFoundError, match="not a training checkpoint"):
        trainer.load(trainer.results_folder)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        trainer.load(trainer.results_folder / "nowhere")


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_a_sharded_model_is_refused(make_trainer, monkeypatch, how):
    """On a CPU accelerate itself would pass over it without a word."""
    from accelerate import FullyShardedDataParallelPlugin

    given = {}
    if how == "argument":
        given = {"accelerate_kwargs": {"fsdp_plugin": FullyShardedDataParallelPlugin()}}
    else:
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="each process holds the whole model"):
        make_trainer(**given)


def test_handlers_of_the_users_own_go_before_ours(make_trainer):
    from accelerate import DistributedDataParallelKwargs

    mine = DistributedDataParallelKwargs(find_unused_parameters=True, bucket_cap_mb=7)
    trainer = make_trainer(accelerate_kwargs={"kwargs_handlers": [mine]})
    assert trainer.accelerator.ddp_handler is mine
    assert trainer.accelerator.init_handler.timeout.total_seconds() == 1800


@pytest.mark.filterwarnings("ignore:skipped")
def test_held_out_files_stay_held_out_when_the_folder_changes(make_trainer, tmp_path):
    """Whatever joins the folder, and with other options of the split too."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(4):
        make_video(videos / f"{number}.mp4", num_frames=6)
    options = dict(dataset=None, dataset_folder=videos, num_frames=5, num_train_steps=2)
    first = make_trainer("run", **options)
    (held_out,) = (path.name for path in first.valid_data.paths)
    first.train()
    assert read_held_out(first.results_folder) == {"video": [held_out]}
    for number in range(4, 30):
        shutil.copy(videos / "0.mp4", videos / f"{number}.mp4")
    options |= dict(num_train_steps=3, valid_frac=0.5, random_split_seed=7)
    with pytest.warns(UserWarning, match="it would be others"):
        second = make_trainer("run", **options)
    assert [path.name for path in second.valid_data.paths] == [held_out]
    assert len(second.data.paths) == 29
    second.train(resume="latest")
    (videos / held_out).unlink()
    with pytest.warns(UserWarning, match=f"1 of the 1 videos that the run holds out .* {held_out}"):
        make_trainer("run", **options)
    for path in videos.iterdir():
        path.rename(videos / held_out)
    with pytest.raises(ValueError, match=r"holds out all 1 videos .* add some to train on"):
        make_trainer("run", **options)


def test_a_run_from_anothers_checkpoint_says_what_it_no_longer_holds_out(make_trainer, tmp_path):
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "0.mp4", num_frames=20)
    options = dict(dataset=None, dataset_folder=tmp_path / "videos", num_frames=1, batch_size=1)
    with pytest.warns(UserWarning, match="the only video"):
        make_trainer("first", num_train_steps=1, **options).train()
    assert read_held_out(tmp_path / "first") == {"end of video": ["0.mp4"]}
    make_video(tmp_path / "videos" / "1.mp4", num_frames=6)
    with pytest.warns(UserWarning, match="end of 0.mp4; beside other videos"):
        make_trainer("first", **options)
    second = make_trainer("second", **options)
    with pytest.warns(UserWarning, match=r"1 of the files .* 0.mp4: .* copy held_out.json"):
        second.resume(tmp_path / "first" / "checkpoints" / "step-1")
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "first" / "held_out.json", tmp_path / "second")
    second.resume(tmp_path / "first" / "checkpoints" / "step-1")

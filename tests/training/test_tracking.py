"""The same names, values and steps in every tracker, also after crashes and failures."""

import io
import json
import re
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from PIL import Image

import magvit2_pytorch
from magvit2_pytorch.training.loop_config import LoopConfig
from magvit2_pytorch.training.processes import build_accelerator
from magvit2_pytorch.training.tracking import Tracking, git_commit, read_log, read_run, source_hash
from tests.training.conftest import clips
from tests.training.tracked_runs import (
    events,
    log_by_step,
    tensorboard_scalars,
    wandb_config,
    wandb_history,
    wandb_records,
)

ADVERSARIAL = dict(
    frame_adversarial_weight=0.1,
    frame_discriminator=dict(dim=4),
    gradient_penalty_weight=1.0,
    gradient_penalty_every=2,
    lecam_loss_weight=0.01,
    feature_matching_weight=0.5,
    adaptive_adversarial_weight=True,
)
ALL_KEYS = {
    "loss", "mse", "psnr", "reconstruction", "sample_entropy", "codebook_entropy", "commitment",
    "perceptual", "frame_adversarial", "frame_feature_matching", "frame_discriminator",
    "frame_lecam", "frame_gradient_penalty",
    *(f"weight/{name}" for name in (
        "reconstruction", "sample_entropy", "codebook_entropy", "commitment", "perceptual",
        "frame_adversarial", "frame_feature_matching", "frame_discriminator", "frame_lecam",
        "frame_gradient_penalty",
    )),
    "frame_adaptive_weight", "frame_real_logit", "frame_fake_logit",
    "grad_norm", "frame_discriminator_grad_norm",
    "learning_rate", "frame_discriminator_learning_rate",
    "codebook_usage", "perplexity",
    "steps_per_s", "clips_per_s", "frames_per_s", "data_wait", "peak_memory_mb",
    "skipped_steps", "frame_discriminator_skipped_steps", "skipped_files",
}  # fmt: skip
CLOCK = {"steps_per_s", "clips_per_s", "frames_per_s", "data_wait", "peak_memory_mb"}


def distance(recon, real):
    return (recon - real).abs().mean()


class Distance(torch.nn.Module):
    def forward(self, recon, real):
        return distance(recon, real)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def wandb_runs(trainer):
    return sorted((trainer.results_folder / "wandb").glob("offline-run-*"))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A finished adversarial run on clips and images, with all three trackers."""
    from tests.training.conftest import make_trainer

    make = make_trainer.__wrapped__(tmp_path_factory.mktemp("everything"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        trainer = make(
            quantizer="lfq",
            image_dataset=[clip[:, 0] for clip in clips()],
            image_frac=0.5,
            image_batch_size=2,
            perceptual_loss=Distance(),
            perceptual_loss_weight=0.3,
            validate_every_step=2,
            num_train_steps=4,
            use_wandb_tracking=True,
            use_tensorboard_tracking=True,
            **ADVERSARIAL,
        )
        trainer.tokenizer.quantizer.entropy_anneal_steps = 4
        trainer.tokenizer.quantizer.entropy_anneal_factor = 3.0
        with trainer.trackers(project_name="videos", run_name="first"):
            trainer.train()
    return trainer


def test_all_trackers_have_the_same_names_and_values_at_the_same_steps(everything):
    log = log_by_step(read_log(everything.tracking.path))
    (folder,) = wandb_runs(everything)
    wandb = wandb_history(folder)
    pictures = {n for values in wandb.values() for n in values if isinstance(values[n], dict)}
    assert pictures == {"valid/clip-0", "valid/image-0"}
    wandb = {
        step: {name: value for name, value in values.items() if name not in pictures}
        for step, values in wandb.items()
    }
    assert wandb == log
    board = tensorboard_scalars(everything.results_folder / "videos")
    assert board.keys() == log.keys() == {1, 2, 3, 4}
    for step, values in log.items():
        assert board[step] == pytest.approx(values, rel=1e-6), step


def test_everything_that_training_does_is_in_the_log(everything):
    log = log_by_step(read_log(everything.tracking.path))
    # The penalty comes at every second step, from the first one on.
    assert {n for n in log[3] if not n.startswith("valid/")} == ALL_KEYS
    assert ALL_KEYS - log[2].keys() == {"frame_gradient_penalty", "weight/frame_gradient_penalty"}
    valid = {"psnr", "codebook_usage", "perplexity", "perceptual"}
    assert {n for n in log[2] if n.startswith("valid/")} == {
        f"valid/{prefix}{name}" for prefix in ("", "image_") for name in valid
    }
    entropy = [log[step]["weight/sample_entropy"] for step in (1, 2, 3, 4)]
    base = everything.tokenizer.quantizer.entropy_loss_weight
    assert entropy == pytest.approx([base * factor for factor in (3.0, 2.5, 2.0, 1.5)])
    for values in log.values():
        assert values["peak_memory_mb"] > 50  # nobody imports torch for less
        assert 0 <= values["data_wait"] <= 1
    # Every second batch is two clips of five frames, the others two images.
    assert log[1]["frames_per_s"] == pytest.approx(log[1]["clips_per_s"] * 5)
    assert log[2]["frames_per_s"] == pytest.approx(log[2]["clips_per_s"])


def test_the_loss_is_the_weighted_sum_of_its_terms(everything):
    line = log_by_step(read_log(everything.tracking.path))[3]
    terms = ("reconstruction", "perceptual", "sample_entropy", "codebook_entropy", "commitment")
    total = sum(line[f"weight/{name}"] * line[name] for name in terms)
    assert line["loss"] == pytest.approx(total, rel=1e-4)


def test_reconstructions_are_in_wandb_and_tensorboard(everything):
    results = everything.results_folder
    (folder,) = wandb_runs(everything)
    history = wandb_history(folder)
    board = events(results / "videos")
    assert set(board.Tags()["images"]) == {"valid/clip-0", "valid/image-0"}
    for step in (2, 4):
        for name, suffix in (("clip-0", "mp4"), ("image-0", "png")):
            ours = (results / f"step-{step}-{name}.{suffix}").read_bytes()
            logged = history[step][f"valid/{name}"]
            assert (folder / "files" / logged["path"]).read_bytes() == ours
            assert logged["_type"] == {"mp4": "video-file", "png": "image-file"}[suffix]
    for name in ("clip-0", "image-0"):
        shown = board.Images(f"valid/{name}")
        assert [image.step for image in shown] == [2, 4]
        picture = Image.open(io.BytesIO(shown[-1].encoded_image_string))
        assert picture.size == (shown[-1].width, shown[-1].height)
        assert picture.tobytes() == Image.open(results / f"step-4-{name}.png").tobytes()


def test_configuration_and_code_version_are_everywhere(everything):
    (start,) = read_run(everything.results_folder)["starts"]
    assert start["step"] == 0
    assert start["model"] == everything.tokenizer.config.to_dict()
    assert start["training"] == everything.config.to_dict()
    assert start["code"]["version"] == magvit2_pytorch.__version__
    assert re.fullmatch("[0-9a-f]{12}", start["code"]["source"])
    assert start["libraries"]["torch"] == torch.__version__
    assert start["libraries"]["python"] == sys.version.split()[0]
    assert (start["device"], start["num_processes"]) == ("cpu", 1)
    (folder,) = wandb_runs(everything)
    config = wandb_config(folder)
    assert {name: config[name] for name in start} == start
    text = events(everything.results_folder / "videos").Tensors("run/text_summary")
    shown = text[0].tensor_proto.string_val[0].decode()
    assert json.loads(shown) == start
    assert all(line.startswith("    ") for line in shown.splitlines())  # Markdown's verbatim


def crash_after(trainer, step):
    """Dies like a process: nothing is saved, closed or said."""
    train_step = trainer.train_step

    def dying(*args):
        if trainer.step == step:
            raise RuntimeError("power cut")
        train_step(*args)

    trainer.train_step = dying
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.train()


def test_a_resumed_run_goes_on_in_the_same_log_curves_and_wandb_run(make_trainer, offline):
    options = dict(
        checkpoint_every_step=3,
        validate_every_step=4,
        use_wandb_tracking=True,
        use_tensorboard_tracking=True,
    )
    whole = make_trainer("whole", **options)
    whole.train()
    first = make_trainer(**options)
    crash_after(first, 5)
    with first.tracking.path.open("a") as file:
        file.write('{"step": 6, "lo')  # what was being written
    assert {line["step"] for line in read_log(first.tracking.path)} == {1, 2, 3, 4, 5}

    second = make_trainer(**options)
    second.load(first.checkpoints_folder / "step-3")
    second.train()
    lines = [
        {name: value for name, value in line.items() if name not in CLOCK}
        for line in read_log(second.tracking.path)
    ]
    assert lines == [
        {name: value for name, value in line.items() if name not in CLOCK}
        for line in read_log(whole.tracking.path)
    ]
    aside = (second.results_folder / "log-after-step-3.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in aside[:-1]] == [4, 4, 5]
    assert aside[-1] == '{"step": 6, "lo'

    board = tensorboard_scalars(second.results_folder / "magvit2")
    log = log_by_step(read_log(second.tracking.path))
    assert {s: set(values) for s, values in board.items()} == {s: set(log[s]) for s in log}
    assert [board[step]["loss"] for step in range(1, 7)] == pytest.approx(
        [log[step]["loss"] for step in range(1, 7)], rel=1e-6
    )

    run = read_run(second.results_folder)
    assert [start["step"] for start in run["starts"]] == [0, 3]
    folders = wandb_runs(second)
    # offline-run-TIME-ID, and a number after it for the second in one second.
    assert {folder.name.split("-")[3] for folder in folders} == {run["wandb_id"]}
    newest = max(folders, key=lambda folder: max(wandb_history(folder)))
    assert set(wandb_history(newest)) == {4, 5, 6}
    assert read_run(whole.results_folder)["wandb_id"] != run["wandb_id"]


def test_going_on_without_a_crash_puts_nothing_aside(make_trainer):
    make_trainer(num_train_steps=4).train()
    longer = make_trainer(num_train_steps=6)
    before = longer.tracking.path.read_bytes()
    longer.tracking.path.write_bytes(before.rstrip())  # the last line has no end
    longer.load(longer.checkpoints_folder / "step-4")
    longer.train()
    assert longer.tracking.path.read_bytes().startswith(before)
    assert not list(longer.results_folder.glob("log-*"))


def test_a_restart_before_the_first_checkpoint_starts_the_log_anew(make_trainer):
    options = dict(num_train_steps=4, use_tensorboard_tracking=True)
    first = make_trainer(**options)
    crash_after(first, 2)
    trainer = make_trainer(**options)
    trainer.train(resume="auto")
    folder = trainer.results_folder
    assert set(log_by_step(read_log(trainer.tracking.path))) == {1, 2, 3, 4}
    assert [line["step"] for line in read_log(folder / "log-after-step-0.jsonl")] == [1, 2]
    assert [start["step"] for start in read_run(folder)["starts"]] == [0, 0]
    assert set(tensorboard_scalars(folder / "magvit2")) == {1, 2, 3, 4}


def test_a_validation_before_training_is_in_its_log(make_trainer):
    trainer = make_trainer(num_train_steps=1)
    trainer.validate()
    trainer.train()
    assert [line["step"] for line in read_log(trainer.tracking.path)] == [0, 1, 1]


class Failing(GeneralTracker):
    """One of the user's own, which fails at some steps."""

    name = "failing"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, steps=(), opens=True):
        super().__init__()
        self.steps, self.opens = steps, opens
        self.seen, self.config, self.finished = {}, None, 0

    def start(self):
        pass

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        if not self.opens:
            raise ConnectionError("wrong password")
        self.config = values

    def log(self, values, step=None):
        if step in self.steps:
            raise ConnectionError("no network")
        self.seen.setdefault(step, {}).update(values)

    def finish(self):
        self.finished += 1


def test_a_tracker_that_fails_is_named_once_and_counted_and_stops_nothing(make_trainer):
    tracker = Failing(steps=(2, 3))
    trainer = make_trainer(num_train_steps=4, accelerate_kwargs=dict(log_with=[tracker]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    said = [str(w.message) for w in caught if "failing" in str(w.message)]
    assert len(said) == 2
    assert "no network" in said[0]
    assert "2 time" in said[1]
    assert set(log_by_step(read_log(trainer.tracking.path))) == {1, 2, 3, 4}
    assert set(tracker.seen) == {1, 4}
    assert tracker.finished == 1
    assert tracker.config["training.learning_rate"] == 3e-3
    assert trainer.step == 4


def test_a_log_that_cannot_be_written_stops_nothing(make_trainer, monkeypatch):
    tracker = Failing()
    trainer = make_trainer(num_train_steps=3, accelerate_kwargs=dict(log_with=[tracker]))
    append = Tracking._append

    def full(self, line):
        if line["step"] == 2:
            raise OSError(28, "No space left on device")
        append(self, line)

    monkeypatch.setattr(Tracking, "_append", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    assert sum("No space left" in str(w.message) for w in caught) == 1
    assert set(log_by_step(read_log(trainer.tracking.path))) == {1, 3}
    assert set(tracker.seen) == {1, 2, 3}


def test_a_tracker_that_cannot_be_opened_is_an_error_before_training(make_trainer):
    trainer = make_trainer(accelerate_kwargs=dict(log_with=[Failing(opens=False)]))
    with pytest.raises(ConnectionError, match="wrong password"):
        trainer.train()
    assert trainer.step == 0


def test_a_tracker_that_is_not_installed_is_an_error(make_trainer, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [LoggerType.WANDB])
    with pytest.raises(ValueError, match=r"^tensorboard cannot .* pip install tensorboard,"):
        make_trainer(use_tensorboard_tracking=True, use_wandb_tracking=True)


def test_a_failed_run_is_failed_in_wandb_too(make_trainer, offline):
    codes = []
    for name, steps in (("fails", 1), ("ends", 9)):
        trainer = make_trainer(name, num_train_steps=2, use_wandb_tracking=True)
        if name == "fails":
            crash_after(trainer, steps)
        else:
            trainer.train()
        (folder,) = wandb_runs(trainer)
        codes += [r.exit.exit_code for r in wandb_records(folder) if r.HasField("exit")]
    assert codes == [1, 0]


def test_trackers_stay_open_between_trainings_of_one_name(make_trainer):
    tracker = Failing()
    trainer = make_trainer(num_train_steps=2, accelerate_kwargs=dict(log_with=[tracker]))
    with trainer.trackers("videos", "first"):
        trainer.train()
        trainer.validate()
        assert tracker.finished == 0
    assert tracker.finished == 1
    assert len(read_run(trainer.results_folder)["starts"]) == 1


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    accelerator = build_accelerator(LoopConfig(), {"cpu": True})
    tracking = Tracking(accelerator, tmp_path / "results", {})
    with tracking.named("videos"), tracking.running(0):
        tracking.log({"loss": 1.0}, 1)
        tracking.log_pictures({"valid/clip-0": tmp_path / "none.mp4"}, 1)
    assert not (tmp_path / "results").exists()


def test_lines_cut_short_are_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n{"step": 3}\n{"st')
    assert read_log(path) == [{"step": 1, "loss": 2.0}, {"step": 3}]


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")

    def git(*words, folder=tmp_path / "code"):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        result = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        return result.stdout.strip()

    (tmp_path / "code" / "venv").mkdir(parents=True)
    assert git_commit(tmp_path / "code") is None
    git("init", "-q")
    assert git_commit(tmp_path / "code") is None  # no commit yet
    for number in range(2):
        git("commit", "-q", "--allow-empty", "-m", str(number))
        assert git_commit(tmp_path / "code") == git("rev-parse", "HEAD")
    git("worktree", "add", "-q", "-b", "other/branch", str(tmp_path / "tree"), "HEAD~1")
    assert git_commit(tmp_path / "tree") == git("rev-parse", "HEAD~1")
    assert git_commit(tmp_path / "code" / "venv") is None  # of another project
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path / "code") is None


def test_the_source_is_known_by_its_bytes(tmp_path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 1\n")
    known = {source_hash(tmp_path)}
    (tmp_path / "notes.txt").write_text("no code")
    assert source_hash(tmp_path) in known
    (tmp_path / "b.py").write_text("x = 2\n")
    known.add(source_hash(tmp_path))
    (tmp_path / "b.py").rename(tmp_path / "c.py")
    known.add(source_hash(tmp_path))
    assert len(known) == 3

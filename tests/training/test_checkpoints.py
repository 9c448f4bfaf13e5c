"""Checkpoints survive kills, full disks and damage; choice of those to keep and to resume from."""

import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from magvit2_pytorch.training import checkpoints
from magvit2_pytorch.training.checkpoints import (
    CHECKSUMS_FILE,
    STATE_FILE,
    TENSORS_FILE,
    CheckpointNotSaved,
    DamagedCheckpoint,
    load_state,
    save_state,
    verify_state,
)
from tests.processes import Started, fresh
from tests.training.killed_worker import (
    STARTED,
    open_checkpoints,
    save_in_a_loop,
    save_until_killed,
    state_of,
)


def assert_whole(folder: Path) -> int:
    """Checked by what it holds, not by its checksums; its step."""
    tensors, values = load_state(folder)
    step = values["step"]
    assert torch.equal(tensors["a"], torch.full_like(tensors["a"], step))
    assert int(tensors["b"]) == step
    assert values["elapsed_s"] == step / 7
    return step


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Killed


def kill_at_random_moments(folder: Path, kills: int, longest_s: float) -> list[int]:
    """Steps that each killed process had reported as saved; what is left is checked each time."""
    chance = random.Random(0)
    reached = []
    for _ in range(kills):
        done = fresh().Value("q", -1, lock=False)  # who dies holding a lock never gives it back
        newest = max(open_checkpoints(folder).steps(), default=0)
        process = fresh().Process(target=save_in_a_loop, args=(folder, newest + 1, done))
        process.start()
        while done.value < STARTED:
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(chance.uniform(0, longest_s))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        checkpoints = open_checkpoints(folder)
        if not checkpoints.steps():
            assert done.value == STARTED
            continue
        for path in checkpoints.steps().values():
            verify_state(path)
            assert_whole(path)
        assert assert_whole(checkpoints.choose("auto")) >= max(done.value, newest)
        if done.value > 0:
            verify_state(folder / "best")
            assert assert_whole(folder / "best") >= done.value - 1
        reached.append(done.value)
    return reached


def test_killed_at_any_moment_the_last_checkpoint_is_whole(tmp_path):
    reached = kill_at_random_moments(tmp_path, kills=6, longest_s=0.3)
    assert max(reached, default=0) > 1  # it came to saving at all


@pytest.mark.slow
def test_killed_hundreds_of_times(tmp_path):
    kill_at_random_moments(tmp_path, kills=200, longest_s=0.2)


def test_killed_between_any_two_steps_of_saving(tmp_path):
    """Each moment in turn, those between two renames among them; the next run tidies up."""
    checkpoints = open_checkpoints(tmp_path / "before", keep=2)
    for step in (1, 2):
        checkpoints.save(*state_of(step))
    checkpoints.keep_if_best(10.0, *state_of(2))
    for number in range(1, 200):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "before", folder)
        process = fresh().Process(target=save_until_killed, args=(folder, number))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        left = open_checkpoints(folder, keep=2)
        assert list(left.steps()) in ([1, 2], [1, 2, 3], [2, 3])
        for path in left.steps().values():
            verify_state(path)
            assert_whole(path)
        assert assert_whole(left.choose("auto")) == max(left.steps())
        # The best one is whole too, and is what it says it is.
        assert left.best_validation()[left.best.name] in (10.0, 20.0, 30.0)
        assert_whole(folder / "best")
        left.save(*state_of(4))
        left.keep_if_best(40.0, *state_of(4))
        assert names_in(folder) <= {"step-2", "step-3", "step-4", "best"}
        assert len(left.steps()) == 2
        assert assert_whole(folder / "best") == 4
        if process.exitcode == 0:
            break
    assert 20 < number < 150


# Damaged


def one_of(folder: Path, step: int = 1) -> Path:
    return open_checkpoints(folder).save(*state_of(step))


@pytest.mark.parametrize("name", [TENSORS_FILE, STATE_FILE, CHECKSUMS_FILE])
def test_every_flipped_bit_is_found(tmp_path, name):
    path = one_of(tmp_path) / name
    whole = path.read_bytes()
    chance = random.Random(name)
    places = range(8 * len(whole))
    for place in chance.sample(places, min(len(places), 300)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedCheckpoint, match=r"tensors\.safetensors|state\.json"):
            verify_state(path.parent)
    path.write_bytes(whole)
    verify_state(path.parent)


@pytest.mark.parametrize("name", [TENSORS_FILE, STATE_FILE, CHECKSUMS_FILE])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_every_truncation_is_found(tmp_path, name, share):
    path = one_of(tmp_path) / name
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DamagedCheckpoint):
        verify_state(path.parent)


@pytest.mark.parametrize("name", [TENSORS_FILE, STATE_FILE, CHECKSUMS_FILE])
def test_every_missing_file_is_named(tmp_path, name):
    folder = one_of(tmp_path)
    (folder / name).unlink()
    with pytest.raises(DamagedCheckpoint, match=f"{name} is missing"):
        verify_state(folder)


def test_checksums_are_those_of_sha256sum(tmp_path):
    folder = one_of(tmp_path)
    lines = (folder / CHECKSUMS_FILE).read_text().splitlines()
    found = dict(reversed(line.split("  ")) for line in lines)
    assert found == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in (TENSORS_FILE, STATE_FILE)
    }


def damage(folder: Path) -> None:
    path = folder / TENSORS_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_one_is_named_with_the_one_to_go_on_from(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    for step in (1, 9, 10):
        checkpoints.save(*state_of(step))
    damage(tmp_path / "step-10")
    for which in ("latest", tmp_path / "step-10"):
        with pytest.raises(DamagedCheckpoint, match=r"step-10/tensors.* resume from .*step-9$"):
            checkpoints.choose(which)
    with pytest.warns(UserWarning, match=r"step-10/tensors.* resuming from .*step-9 instead"):
        assert checkpoints.choose("auto") == tmp_path / "step-9"
    damage(tmp_path / "step-9")
    (tmp_path / "step-1" / TENSORS_FILE).unlink()
    # Never from the start without a word, where there is something.
    with pytest.raises(DamagedCheckpoint, match="no older checkpoint is undamaged"):
        checkpoints.choose("auto")


def test_the_one_to_go_on_from_is_older(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(*state_of(step))
    damage(tmp_path / "step-2")
    with pytest.raises(DamagedCheckpoint, match=r"resume from .*step-1$"):
        checkpoints.choose(tmp_path / "step-2")


def test_a_damaged_best_one_is_named_with_the_newest(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.keep_if_best(float(step), *state_of(step))
    best = tmp_path / "best" / TENSORS_FILE
    data = best.read_bytes()
    best.unlink()
    best.write_bytes(data[:-1])
    with pytest.raises(DamagedCheckpoint, match=r"best/tensors.* resume from .*step-2$"):
        checkpoints.choose(tmp_path / "best")


def test_words_and_folders_that_stand_for_none(tmp_path):
    checkpoints = open_checkpoints(tmp_path / "none")
    assert checkpoints.choose("auto") is None
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoints.choose("latest")
    with pytest.raises(FileNotFoundError, match=r"no such folder; give one like .*step-1000"):
        checkpoints.choose("lastest")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="not a training checkpoint"):
        checkpoints.choose(tmp_path / "empty")


# Kept


def test_the_last_and_the_best_are_kept(tmp_path):
    checkpoints = open_checkpoints(tmp_path, keep=2)
    for step, psnr in enumerate([20.0, 25.0, 24.0, float("nan"), 23.0], 1):
        checkpoints.save(*state_of(step))
        checkpoints.keep_if_best(psnr, *state_of(step))
    assert names_in(tmp_path) == {"step-4", "step-5", "best"}
    verify_state(tmp_path / "best")
    assert assert_whole(tmp_path / "best") == 2
    said = json.loads((tmp_path / "best" / "validation.json").read_text())
    assert said == {"step": 2, "psnr": 25.0}
    # A later process knows.
    open_checkpoints(tmp_path, keep=2).keep_if_best(24.9, *state_of(6))
    assert assert_whole(tmp_path / "best") == 2


def test_the_best_is_saved_where_its_step_was_not(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(*state_of(4))
    back = open_checkpoints(tmp_path)  # another run, that went back and comes to step 4 again
    tensors, values = state_of(4)
    back.keep_if_best(20.0, tensors, values | {"of": "the second"})
    assert load_state(tmp_path / "best")[1]["of"] == "the second"
    assert load_state(tmp_path / "step-4")[1]["of"] == "the second"


def test_where_files_cannot_have_two_names_the_best_is_a_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    open_checkpoints(tmp_path).keep_if_best(1.0, *state_of(1))
    damage(tmp_path / "step-1")
    verify_state(tmp_path / "best")


def test_nothing_is_removed_unless_asked_and_nothing_of_others(tmp_path):
    for keep, left in ((None, 6), (3, 3), (1, 1)):
        checkpoints = open_checkpoints(tmp_path / str(keep), keep)
        for name in ("step-x", ".git.part", ".notes.old", "step-7.txt"):
            (checkpoints.folder / name).mkdir(parents=True)
        save_state(checkpoints.path(50), *state_of(50))  # of a run that had come further
        for step in range(1, 7):
            checkpoints.save(*state_of(step))
        assert sorted(checkpoints.steps())[-1] == 50
        assert len(checkpoints.steps()) == left + 1
        assert {"step-x", ".git.part", ".notes.old", "step-7.txt"} <= names_in(checkpoints.folder)


def test_the_one_gone_on_from_stays_until_the_next_is_whole(tmp_path, monkeypatch):
    open_checkpoints(tmp_path, keep=1).save(*state_of(1))
    raises = lambda *_: (_ for _ in ()).throw(OSError("x"))  # noqa: E731
    monkeypatch.setattr(checkpoints, "write_tensors", raises)
    with pytest.raises(CheckpointNotSaved):
        open_checkpoints(tmp_path, keep=1).save(*state_of(2))
    assert assert_whole(tmp_path / "step-1") == 1


# A full disk


@pytest.mark.parametrize("kind", ["known before", "found out while writing"])
def test_a_full_disk_costs_nothing_and_is_explained(tmp_path, monkeypatch, kind):
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(*state_of(1))
    if kind == "known before":
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    else:

        def full(path, *_, **__):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        CheckpointNotSaved, match=r"step-2 .* MB.*free some space.*step-1"
    ) as raised:
        checkpoints.save(*state_of(2))
    assert str(tmp_path) in str(raised.value)
    assert names_in(tmp_path) == {"step-1"}
    assert assert_whole(checkpoints.choose("latest")) == 1


def save_beyond_a_limit(folder):
    checkpoints = open_checkpoints(folder)
    checkpoints.save(*state_of(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    checkpoints.save(*state_of(2, size=100_000))


def test_a_limit_of_the_system_leaves_the_last_one(tmp_path):
    """A real one: no file may grow beyond 100 kB."""
    assert resource.RLIMIT_FSIZE
    with Started(save_beyond_a_limit, tmp_path) as done:
        assert done.wait() == 1
        last = done.stderr.strip().splitlines()[-1]
    assert "CheckpointNotSaved: the checkpoint" in last
    assert "File too large" in last or "FileTooLarge" in last
    assert names_in(tmp_path) == {"step-1"}
    assert assert_whole(tmp_path / "step-1") == 1


def test_a_training_stops_when_it_cannot_save(make_trainer, monkeypatch):
    trainer = make_trainer(checkpoint_every_step=2, validate_every_step=100)
    step = trainer.train_step

    def filling(*args):
        if trainer.step == 3:
            usage = shutil.disk_usage(trainer.results_folder)._replace(free=1000)
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        step(*args)

    trainer.train_step = filling
    with pytest.raises(CheckpointNotSaved, match=r"step-4 .*free some space.*step-2"):
        trainer.train()
    assert names_in(trainer.checkpoints_folder) == {"step-2"}


# In a training


def test_what_a_training_keeps(make_trainer):
    trainer = make_trainer(
        num_train_steps=12, checkpoint_every_step=2, validate_every_step=100, keep_checkpoints=2
    )
    trainer.train()
    assert names_in(trainer.checkpoints_folder) == {"step-10", "step-12", "best"}
    about = json.loads((trainer.checkpoints_folder / "best" / "validation.json").read_text())
    assert about["step"] == 12
    again = make_trainer("again", num_train_steps=12)
    again.load(trainer.checkpoints_folder / "best")
    assert again.validate()["valid/psnr"] == about["valid/psnr"]


def test_the_best_by_validation(make_trainer, monkeypatch):
    """It is kept as it was when it was measured, though no checkpoint was due."""
    trainer = make_trainer(num_train_steps=9, checkpoint_every_step=100, validate_every_step=2)
    psnrs = iter([20.0, 30.0, 25.0, 25.0, 25.0])
    seen = {}

    def validate():
        seen[trainer.step] = [p.clone() for p in trainer.tokenizer.parameters()]
        return {"valid/psnr": next(psnrs)}

    monkeypatch.setattr(trainer, "validate", validate)
    trainer.train()
    assert names_in(trainer.checkpoints_folder) == {"step-2", "step-4", "step-9", "best"}
    best = make_trainer("best", num_train_steps=9)
    best.load(trainer.checkpoints_folder / "best")
    assert best.step == 4
    for ours, theirs in zip(best.tokenizer.parameters(), seen[4], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("left", ["step-2", "best"])
def test_a_new_run_refuses_the_folder_of_an_earlier_one(make_trainer, left):
    first = make_trainer(num_train_steps=2)
    first.train()
    folder = first.checkpoints_folder
    for path in folder.iterdir():
        if path.name != left:
            shutil.rmtree(path)
    log = first.tracking.path.read_bytes()
    with pytest.raises(FileExistsError, match=r"checkpoints of an earlier run: .*resume='latest'"):
        make_trainer(num_train_steps=3).train()
    assert names_in(folder) == {left}
    assert first.tracking.path.read_bytes() == log

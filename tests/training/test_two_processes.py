"""Two processes over gloo train what one process with twice the batch trains, and end as one."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from magvit2_pytorch.training.tracking import read_log
from tests.processes import ROOT, start_ranks
from tests.training import faults_worker, lost_worker
from tests.training import two_processes_worker as worker
from tests.training.test_trainer import assert_same

HANG_S = 5.0
"""After this long without an answer a process is lost."""


def torchrun(*command: object) -> subprocess.CompletedProcess:
    """Runs a script in two processes to its end, in the folder of this repository."""
    # It ends one process for the other at its next look, so that one has a moment to speak first.
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    return subprocess.run(
        [sys.executable, *words, "--monitor_interval=10", *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )


def both_ranks(folder: Path) -> list[dict]:
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(
    scope="module", params=["adversarial", pytest.param("plain", marks=pytest.mark.slow)]
)
def runs(request, tmp_path_factory):
    """Results of both ranks, their folder, and the run of one process; slowly by torchrun."""
    two, one = (tmp_path_factory.mktemp(name) for name in ("two", "one"))
    if request.param == "plain":
        done = torchrun(worker.__file__, two, request.param)
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        first, second = start_ranks(worker.run, two, request.param)
        with first, second:
            assert [first.wait(), second.wait()] == [0, 0], first.stderr + second.stderr
    return both_ranks(two), two, worker.train(one, 4, request.param), one


def test_two_processes_ran(runs):
    ranks, *_ = runs
    assert [rank["num_processes"] for rank in ranks] == [2, 2]
    assert [rank["step"] for rank in ranks] == [5, 5]


@pytest.mark.parametrize("kind", ["tokenizer", "ema", "adversary"])
def test_both_ranks_hold_the_same_weights(runs, kind):
    (first, second), *_ = runs
    for name, value in first[kind].items():
        torch.testing.assert_close(value, second[kind][name], atol=0, rtol=0)


def test_two_processes_equal_one_with_twice_the_batch(runs):
    (first, _), _, trainer, _ = runs
    for name, value in trainer.tokenizer.state_dict().items():
        torch.testing.assert_close(first["tokenizer"][name], value, atol=2e-4, rtol=1e-3)
    for name, value in trainer.ema_tokenizer.state_dict().items():
        torch.testing.assert_close(first["ema"][name], value, atol=2e-4, rtol=1e-3)
    for kind, optimization in list(trainer.optimizations.items())[1:]:
        for name, value in optimization.state_dict().items():
            theirs = first["adversary"][f"{kind}.{name}"]
            torch.testing.assert_close(theirs, value, atol=2e-4, rtol=1e-3)


def test_the_loss_curves_are_one_and_written_once(runs):
    _, two, _, one = runs
    theirs, ours = read_log(two / "log.jsonl"), read_log(one / "log.jsonl")
    assert [line["step"] for line in theirs] == [line["step"] for line in ours]
    # Figures of a clock, and of the machine.
    own = {"steps_per_s", "clips_per_s", "frames_per_s", "data_wait", "peak_memory_mb"}
    for a, b in zip(theirs, ours, strict=True):
        names = set(a) - own
        assert names == set(b) - own
        assert {n: a[n] for n in names} == pytest.approx({n: b[n] for n in names}, rel=1e-3)


def test_resuming_on_two_processes_equals_never_stopping(runs):
    (first, second), *_ = runs
    for rank in (first, second):
        assert rank["resumed"].keys() == rank["whole"].keys()
        for name, value in rank["whole"].items():
            torch.testing.assert_close(rank["resumed"][name], value, atol=1e-5, rtol=1e-4)
    for name, value in first["resumed"].items():
        torch.testing.assert_close(second["resumed"][name], value, atol=0, rtol=0)


def test_another_task_equals_itself_in_both_and_learns(runs):
    _, two, *_ = runs
    first, second = both_ranks(two / "denoiser")
    assert_same(first, second, atol=0, rtol=0)
    lines = read_log(two / "denoiser" / "log.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]


# What befalls one process


def assert_it_was_said(status: int, stderr: str, folder: Path) -> None:
    assert status == 1
    assert "LostProcess: process 0 of 2 lost the connection to another one" in stderr
    assert "--resume auto" in stderr
    # What was saved before is there to go on from.
    again = worker.train(folder, 4, "plain", resume="auto")
    assert again.step == 5


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Rank 0's process and its folder, at the end of a run of all faults."""
    folder = tmp_path_factory.mktemp("faults")
    first, second = start_ranks(faults_worker.main, folder)
    with first, second:
        first.wait()
        yield first, folder


@pytest.fixture(scope="module")
def faults(faulty):
    first, folder = faulty
    assert (folder / "rank-0.pt").exists(), first.stderr[-3000:]
    ranks = both_ranks(folder)
    assert [rank["num_processes"] for rank in ranks] == [2, 2]
    return ranks


def assert_equal_state(ranks, scene):
    ours, theirs = (rank[scene]["after"] for rank in ranks)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.isfinite().all(), name
        assert torch.equal(value, theirs[name]), name


def test_numbers_gone_wrong_in_one_process_are_skipped_in_both(faults):
    for rank in faults:
        scene = rank["nan_in_one_process"]
        assert (scene["skipped"], scene["same"]) == (2, True)
    assert_equal_state(faults, "nan_in_one_process")


def test_a_signal_to_one_process_stops_and_saves_both(faults):
    for rank in faults:
        assert rank["interrupted_in_one_process"] == {"step": 3, "saved": [3]}


def test_a_full_disk_is_an_error_in_both(faults):
    for rank in faults:
        assert rank["full_disk"]["saved"] == [2]
        assert "step-4 could not be written" in rank["full_disk"]["said"]


def test_both_pass_over_a_damaged_checkpoint(faults):
    assert [rank["damaged"]["step"] for rank in faults] == [3, 3]
    assert_equal_state(faults, "damaged")


def test_a_parameter_that_no_gradient_reaches(faults):
    for rank in faults:
        scene = rank["parameter_without_gradient"]
        assert (scene["step"], scene["told"]) == (0, 3)
        assert "no gradient reached tokenizer.decoder.layers.0.idle:" in scene["said"]
        assert "find_unused_parameters=True" in scene["said"]
    assert_equal_state(faults, "parameter_without_gradient")


def test_a_process_that_dies_ends_the_run_with_a_message(faults, faulty):
    first, folder = faulty
    assert_it_was_said(first.wait(), first.stderr, folder / "killed")


def test_a_process_that_hangs_ends_the_run_with_a_message(tmp_path):
    """The other process reports it before the test times out."""
    options = dict(process_timeout_s=HANG_S)
    first, second = start_ranks(partial(lost_worker.main, **options), tmp_path, "hang")
    with first, second:
        assert_it_was_said(first.wait(), first.stderr, tmp_path)


@pytest.mark.slow
def test_a_message_comes_before_torchrun_ends_the_others(tmp_path):
    done = torchrun(lost_worker.__file__, tmp_path)
    assert_it_was_said(done.returncode, done.stderr, tmp_path)

"""Two processes over gloo train what one process with twice the batch trains."""

import os
import subprocess
import sys

import pytest
import torch

from magvit2_pytorch.training.tracking import read_log
from tests.training import two_processes_worker as worker


@pytest.fixture(scope="module", params=["plain", "adversarial"])
def runs(request, tmp_path_factory):
    """What both ranks ended with, the folder they wrote, and the run of one process."""
    two, one = (tmp_path_factory.mktemp(name) for name in ("two", "one"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, worker.__file__, str(two), request.param],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(two / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]
    return ranks, two, worker.train(one, 4, request.param), one


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
    for adversary in trainer.adversaries:
        for name, value in adversary.state_dict().items():
            torch.testing.assert_close(first["adversary"][name], value, atol=2e-4, rtol=1e-3)


def test_the_loss_curves_are_one_and_written_once(runs):
    _, two, _, one = runs
    theirs, ours = read_log(two / "log.jsonl"), read_log(one / "log.jsonl")
    assert [line["step"] for line in theirs] == [line["step"] for line in ours]
    own = {"steps_per_s", "clips_per_s", "data_wait"}  # figures of a clock
    for a, b in zip(theirs, ours, strict=True):
        names = set(a) - own
        assert names == set(b) - own
        assert {n: a[n] for n in names} == pytest.approx({n: b[n] for n in names}, rel=1e-3)

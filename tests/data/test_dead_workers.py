"""A dead data worker raises an error that names it, its file and a remedy."""

import json
import os
import re
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch

from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import VideoDataset
from magvit2_pytorch.data.loader import InfiniteBatches
from magvit2_pytorch.data.workers import DeadWorker
from tests.data import killed_worker
from tests.data.clip_files import make_video
from tests.processes import Started

SPEC = ClipSpec(num_frames=5, image_size=16)


@pytest.fixture(autouse=True)
def _looking_often(monkeypatch):
    """The loader looks for dead workers every 5 seconds, which most of these tests would wait."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.3)


class _Dying(torch.utils.data.Dataset):
    """Items of a dataset; the process that reads the last one ends by `end`."""

    takes_epoch = True

    def __init__(self, dataset, end):
        self.dataset, self.end = dataset, end

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        item = self.dataset[key]
        if key[1] == len(self) - 1 and torch.utils.data.get_worker_info():
            self.end(os.getpid())
        return item


def _kill(pid):
    os.kill(pid, 9)


def _crash(pid):
    os.kill(pid, 11)


def _leave(pid):
    os._exit(3)


@pytest.mark.parametrize("end", [_kill, _leave, _crash])
def test_a_worker_that_dies_is_named_with_its_file(tmp_path, end):
    for number in range(6):
        make_video(tmp_path / f"{number}.mp4", 6)
    dataset = _Dying(VideoDataset(tmp_path, SPEC), end)
    batches = InfiniteBatches(dataset, 1, num_workers=2, shuffle=False)
    with pytest.raises(DeadWorker, match=r"is killed by|exited unexpectedly|died") as caught:
        list(islice(batches, 60))
    said = str(caught.value)
    assert re.search(r"data worker [01] \(process \d+\), whose last file was \S+/5\.mp4,", said)
    assert "num_workers" in said
    assert isinstance(caught.value, RuntimeError)


def test_other_errors_of_workers_are_unchanged(tmp_path):
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, number):
            raise KeyError("what is this")

    with pytest.raises(KeyError, match="what is this"):
        next(InfiniteBatches(Broken(), 1, num_workers=1))


@pytest.mark.parametrize("then", ["waiting", "computing"])
def test_training_ends_when_a_worker_is_killed(tmp_path, then):
    """A real kill during training gives an error within a minute instead of a hang."""
    for number in range(3):
        make_video(tmp_path / f"{number}.mp4", 12)
    with Started(killed_worker.main, tmp_path, then) as done:
        assert done.wait() == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        assert said["error"] == "DeadWorker", done.stderr
    assert re.search(r"data worker 0 \(process \d+\), whose last file was \S+\.mp4", said["text"])
    assert said["steps"] >= 1
    # No temporary files are left.
    assert list(Path(said["temporary"]).glob("magvit2_*")) == []
    shutil.rmtree(said["temporary"])

"""Resuming equals never stopping; workers and processes change nothing."""

import gc
import os
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import VideoDataset
from magvit2_pytorch.data.loader import InfiniteBatches, ResumableSampler
from tests.data.clip_files import make_format


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name in ("b_frames.mp4", "vp9.webm", "ffv1.mkv"):
        make_format(folder, name, 12)
    spec = ClipSpec(num_frames=5, image_size=16, flip=True, random_scale=(1.0, 1.3))
    return VideoDataset(folder, spec, clips_per_video=2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_equals_never_stopping(dataset, num_workers):
    whole = [next(batches) for batches in [InfiniteBatches(dataset, 4)] for _ in range(7)]
    assert whole[0].shape == (4, 3, 5, 16, 16)
    stopped = InfiniteBatches(dataset, 4, num_workers=num_workers)
    for batch in whole[:3]:
        assert torch.equal(next(stopped), batch)
    # Workers have prefetched by now; the state counts the batches returned.
    assert stopped.state_dict() == {"position": 3}
    assert stopped.epoch == 2
    resumed = InfiniteBatches(dataset, 4, num_workers=num_workers)
    next(resumed)
    resumed.load_state_dict(stopped.state_dict())
    for batch in whole[3:]:
        assert torch.equal(next(resumed), batch)


class _Ring:
    """A reference cycle that only the garbage collector frees, like a decoder in a traceback."""

    def __init__(self, told):
        self.told, self.itself = told, self

    def __del__(self):
        with self.told.open("a") as told:
            told.write(f"{os.getpid()}\n")


class _Collecting(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, number):
        gc.collect(0)  # what was made last; all takes seconds
        return torch.zeros(1)


def test_garbage_of_this_process_is_not_collected_in_a_worker(tmp_path):
    batches = InfiniteBatches(_Collecting(), 1, num_workers=2)
    gc.disable()
    try:
        _Ring(tmp_path / "told")
        assert len(list(islice(batches, 4))) == 4
    finally:
        gc.enable()
    assert (tmp_path / "told").read_text().split() == [str(os.getpid())]


def test_batches_are_stacked_items(dataset):
    keys = ResumableSampler(6, 4, seed=2).batch(5)
    batches = InfiniteBatches(dataset, 4, seed=2, position=5)
    assert torch.equal(next(batches), torch.stack([dataset[key] for key in keys]))


def test_no_global_randomness_is_used(dataset):
    # Not Python's own: the type checks of the tests draw from that.
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    next(InfiniteBatches(dataset, 4, num_workers=1))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize(("num_items", "batch_size"), [(10, 4), (3, 8), (1, 1), (7, 7)])
def test_each_item_comes_once_per_epoch(num_items, batch_size):
    sampler = ResumableSampler(num_items, batch_size)
    keys = [key for batch in islice(sampler, 5 * num_items) for key in batch]
    assert max(Counter(keys).values()) == 1
    num_epochs = len(keys) // num_items
    assert set(keys) == {(e, i) for e in range(num_epochs) for i in range(num_items)}
    assert [epoch for epoch, _ in keys] == sorted(epoch for epoch, _ in keys)


def test_epochs_and_seeds_differ_in_order():
    def order(seed, epoch):
        return [item for _, item in ResumableSampler(50, 50, seed=seed).batch(epoch)]

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len(set(map(tuple, orders))) == 9
    assert order(0, 0) == order(0, 0)
    unshuffled = ResumableSampler(6, 4, shuffle=False)
    assert unshuffled.batch(1) == [(0, 4), (0, 5), (1, 0), (1, 1)]


def test_two_processes_equal_one():
    one = ResumableSampler(10, 6, seed=1)
    two = [ResumableSampler(10, 3, seed=1, rank=rank, world_size=2) for rank in range(2)]
    for number in range(8):
        assert two[0].batch(number) + two[1].batch(number) == one.batch(number)


def test_a_dataset_smaller_than_a_batch_fills_it(dataset):
    with pytest.warns(UserWarning, match="6 items are fewer than a batch of 16"):
        batches = InfiniteBatches(dataset, 16)
    assert len(next(batches)) == 16


def test_other_datasets_have_numbers_as_keys():
    numbers = TensorDataset(torch.arange(10.0))
    batches = InfiniteBatches(numbers, 5)
    assert sorted(torch.cat([next(batches)[0], next(batches)[0]]).tolist()) == list(range(10))


def test_wrong_settings_are_refused(dataset):
    with pytest.raises(ValueError, match="batch_size is 0"):
        InfiniteBatches(dataset, 0)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        InfiniteBatches(dataset, 1, rank=2, world_size=2)
    with pytest.raises(ValueError, match="position is -1"):
        InfiniteBatches(dataset, 1, position=-1)
    with pytest.raises(ValueError, match="dataset is empty"):
        InfiniteBatches(TensorDataset(torch.zeros(0)), 1)

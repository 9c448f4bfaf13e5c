"""Batches of a dataset: without end and resumable for training, once through otherwise."""

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from magvit2_pytorch.data.dead_workers import FileBoard
from magvit2_pytorch.data.sampler import FiniteSampler, ResumableSampler
from magvit2_pytorch.types import Clips


def build_loader(
    dataset: Clips,
    batch_size: int,
    *,
    train: bool = True,
    num_workers: int = 0,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool = True,
    pin_memory: bool = False,
    position: int = 0,
) -> DataLoader:
    """A `DataLoader` over the dataset's items, stacked: `b c t h w` or `b c h w`.

    With `train` it never ends and begins with batch number `position` (see
    `ResumableSampler`); `InfiniteBatches` keeps count for you. Otherwise it gives each item
    once, in order, with a smaller last batch. Batches are the same for any `num_workers`.
    It shards by `rank` itself: do not pass it through accelerate's `prepare`. A worker that dies
    raises `DeadWorker` (a `RuntimeError`), which names it and the file it was at.
    """
    if train:
        sampler = ResumableSampler(
            len(dataset),
            batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            shuffle=shuffle,
            position=position,
        )
        if len(dataset) < batch_size * world_size:
            warnings.warn(
                f"{len(dataset)} items are fewer than a batch of {batch_size * world_size}: "
                "each batch holds some of them several times",
                stacklevel=2,
            )
    else:
        sampler = FiniteSampler(len(dataset), batch_size, rank=rank, world_size=world_size)
    return _ForkSafeLoader(
        dataset if getattr(dataset, "takes_epoch", False) else _WithoutEpoch(dataset),
        batch_sampler=sampler,
        num_workers=num_workers,
        worker_init_fn=FileBoard() if num_workers else None,
        pin_memory=pin_memory,
        # Without one of its own it draws from the global state, which then differs on resume.
        generator=torch.Generator().manual_seed(seed),
    )


class _ForkSafeLoader(DataLoader):
    def __iter__(self) -> Iterator[Any]:
        # A decoder that waits for Python's garbage collector in this process must not be
        # collected in a forked worker: it would wait forever for threads that are not there.
        if self.num_workers:
            gc.collect()
            return _Batches(super().__iter__(), self.worker_init_fn)
        return super().__iter__()


class _Batches:
    def __init__(self, batches: Iterator[Any], board: FileBoard):
        self._batches = batches
        self._board = board

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._board.watching():
            return next(self._batches)


class InfiniteBatches:
    """An endless stream of training batches whose whole state is a number.

        batches = InfiniteBatches(dataset, batch_size=4, num_workers=2, seed=0)
        video = next(batches)                      # b c t h w
        torch.save(batches.state_dict(), ...)      # {"position": 1}
        batches.load_state_dict(...)               # goes on with the same batches, bit for bit

    `position` counts the batches handed out, not those that workers have prepared. Takes
    `build_loader`'s arguments.
    """

    def __init__(self, dataset: Clips, batch_size: int, *, position: int = 0, **options: Any):
        self.loader = build_loader(dataset, batch_size, train=True, position=position, **options)
        self.dataset = dataset
        self.batch_size = batch_size
        self.position = position
        self._batches: Iterator[Any] | None = None

    @property
    def epoch(self) -> float:
        """How many times the dataset has been gone through, as a fraction."""
        sampler = self.loader.batch_sampler
        return self.position * sampler.batch_size * sampler.world_size / sampler.num_items

    def __iter__(self) -> "InfiniteBatches":
        return self

    def __next__(self) -> Any:
        if self._batches is None:
            self.loader.batch_sampler.set_position(self.position)
            self._batches = iter(self.loader)
        batch = next(self._batches)
        self.position += 1
        return batch

    def set_position(self, position: int) -> None:
        """Goes on with batch number `position`; what workers have prepared is dropped."""
        self.loader.batch_sampler.set_position(position)
        self.position = position
        self._batches = None

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.set_position(int(state["position"]))


class _WithoutEpoch(Dataset):
    """Lets a dataset that knows only numbers be asked for (epoch, number)."""

    def __init__(self, dataset: Clips):
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return self.dataset[key[1]]

    def __len__(self) -> int:
        return len(self.dataset)

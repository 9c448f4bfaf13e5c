"""Endless batches as a function of their number: sampler and loader."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from magvit2_pytorch.config import check_at_least_one
from magvit2_pytorch.data.workers import EndlessLoader
from magvit2_pytorch.runtime import keyed_seed
from magvit2_pytorch.types import Clips


class ResumableSampler(Sampler):
    """Endless batches of keys (epoch, item); the only state is `position`.

    Each item comes once per epoch, in an order drawn from (seed, epoch). A batch may hold the
    end of one epoch and the start of the next. Processes (`rank` of `world_size`) share each
    global batch of `batch_size * world_size` items.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        position: int = 0,
    ):
        if num_items < 1:
            raise ValueError("the dataset is empty: batches need at least one item")
        check_at_least_one(batch_size=batch_size)
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank {rank} of {world_size} processes: ranks go from 0 to world_size - 1"
            )
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.rank, self.world_size, self.shuffle = rank, world_size, shuffle
        self.set_position(position)
        self._orders: dict[int, list[int]] = {}

    def set_position(self, position: int) -> None:
        """Sets the number of the batch that iteration starts with."""
        if position < 0:
            raise ValueError(f"position is {position}: batch numbers start at 0")
        self.position = position

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self.position
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> list[tuple[int, int]]:
        """Keys of batch `number` of this rank."""
        start = (number * self.world_size + self.rank) * self.batch_size
        positions = (divmod(start + i, self.num_items) for i in range(self.batch_size))
        return [(epoch, self._order(epoch)[index]) for epoch, index in positions]

    def _order(self, epoch: int) -> list[int] | range:
        if not self.shuffle:
            return range(self.num_items)
        if epoch not in self._orders:
            # Batches span neighbouring epochs only.
            self._orders = {e: o for e, o in self._orders.items() if abs(e - epoch) <= 1}
            generator = torch.Generator().manual_seed(keyed_seed("order", self.seed, epoch))
            self._orders[epoch] = torch.randperm(self.num_items, generator=generator).tolist()
        return self._orders[epoch]


class InfiniteBatches:
    """Endless, resumable batches of clips or images.

        batches = InfiniteBatches(dataset, batch_size=4, num_workers=2, seed=0)
        video = next(batches)                      # b c t h w
        torch.save(batches.state_dict(), ...)      # {"position": 1}
        batches.load_state_dict(...)               # continues with the same batches, bit for bit

    Batches are the same for any `num_workers`. Processes share the work by `rank` and `world_size`
    (see `ResumableSampler`): do not pass the loader through accelerate's `prepare`. When a worker
    process dies, `DeadWorker` (a `RuntimeError`) names it and the last file it opened.
    """

    def __init__(
        self,
        dataset: Clips,
        batch_size: int,
        *,
        num_workers: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        pin_memory: bool = False,
        position: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ):
        self.dataset, self.batch_size, self.position = dataset, batch_size, position
        order = dict(seed=seed, rank=rank, world_size=world_size, shuffle=shuffle)
        sampler = ResumableSampler(len(dataset), batch_size, position=position, **order)
        if len(dataset) < batch_size * world_size:
            warnings.warn(
                f"{len(dataset)} items are fewer than a batch of {batch_size * world_size}: "
                "each batch repeats some of them",
                stacklevel=2,
            )
        self.loader = EndlessLoader(
            dataset if getattr(dataset, "takes_epoch", False) else _WithoutEpoch(dataset),
            num_workers,
            seed,
            batch_sampler=sampler,
            collate_fn=collate_fn,
            pin_memory=pin_memory,
        )
        self._batches: Iterator[Any] | None = None

    @property
    def epoch(self) -> float:
        """Number of passes over the dataset so far, as a fraction."""
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
        """Continues with batch number `position`; prefetched batches are dropped."""
        self.loader.batch_sampler.set_position(position)
        self.position = position
        self._batches = None

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.set_position(int(state["position"]))


class _WithoutEpoch(Dataset):
    """Dataset with keys (epoch, number) over one whose keys are numbers."""

    def __init__(self, dataset: Clips):
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return self.dataset[key[1]]

    def __len__(self) -> int:
        return len(self.dataset)

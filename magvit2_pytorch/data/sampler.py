"""Which items make up a batch, as a function of its number alone."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from magvit2_pytorch.seeds import keyed_seed


class ResumableSampler(Sampler):
    """Batches of items without end, as keys (epoch, item); the only state is `position`.

    Epochs follow each other without a seam: each item comes once an epoch, in an order drawn
    from (seed, epoch), and a batch may hold the end of one epoch and the start of the next.
    So no item is dropped, and a set smaller than a batch still gives full batches.

    Processes (`rank` of `world_size`) share each global batch of `batch_size * world_size`
    items: two processes see together what one sees with twice the batch size.
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
        _check_sharding(num_items, batch_size, rank, world_size)
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.set_position(position)
        self._orders: dict[int, list[int]] = {}

    def set_position(self, position: int) -> None:
        """The number of the batch to begin with, counted from the start of training."""
        if position < 0:
            raise ValueError(f"position is {position}: batches are counted from 0")
        self.position = position

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self.position
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> list[tuple[int, int]]:
        """The keys of this rank's batch of this number."""
        start = (number * self.world_size + self.rank) * self.batch_size
        places = (divmod(start + i, self.num_items) for i in range(self.batch_size))
        return [(epoch, self._order(epoch)[place]) for epoch, place in places]

    def _order(self, epoch: int) -> list[int] | range:
        if not self.shuffle:
            return range(self.num_items)
        if epoch not in self._orders:
            # Ranks and batches ask for neighbouring epochs only.
            self._orders = {e: o for e, o in self._orders.items() if abs(e - epoch) <= 1}
            generator = torch.Generator().manual_seed(keyed_seed("order", self.seed, epoch))
            self._orders[epoch] = torch.randperm(self.num_items, generator=generator).tolist()
        return self._orders[epoch]


class FiniteSampler(Sampler):
    """Each item once, in order, in batches of which the last may be smaller.

    With several processes each takes every `world_size`-th item; the first items come again
    where that does not come out even, so that all have equally many batches and none waits.
    """

    def __init__(self, num_items: int, batch_size: int, *, rank: int = 0, world_size: int = 1):
        _check_sharding(num_items, batch_size, rank, world_size)
        per_rank = -(-num_items // world_size)
        self.items = [(i * world_size + rank) % num_items for i in range(per_rank)]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.items) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self.items), self.batch_size):
            yield [(0, item) for item in self.items[start : start + self.batch_size]]


def _check_sharding(num_items: int, batch_size: int, rank: int, world_size: int) -> None:
    if num_items < 1:
        raise ValueError("an empty dataset makes no batches")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: at least 1")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} processes: ranks go from 0")

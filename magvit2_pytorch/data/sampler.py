"""Sampling whose batches are a function of the batch number."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from magvit2_pytorch.seeds import keyed_seed


class ResumableSampler(Sampler):
    """Endless batches of keys (epoch, item); the only state is `position`.

    Each item comes once per epoch, in an order drawn from (seed, epoch). A batch may hold the
    end of one epoch and the start of the next, so no item is dropped, and a dataset smaller
    than a batch still gives full batches.

    Processes (`rank` of `world_size`) share each global batch of `batch_size * world_size`
    items: two processes together get the items that one gets with twice the batch size.
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
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: give at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank {rank} of {world_size} processes: ranks go from 0 to world_size - 1"
            )
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
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

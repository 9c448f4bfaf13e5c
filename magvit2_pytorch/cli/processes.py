"""Rank of this process, as set by torchrun and accelerate launch."""

import os
from typing import NamedTuple

from magvit2_pytorch.cli.errors import UserError


class Process(NamedTuple):
    """Rank of a process among `world_size`, and among those on its machine."""

    rank: int
    world_size: int
    local_rank: int

    @property
    def is_single(self) -> bool:
        return self.world_size == 1

    @property
    def prefix(self) -> str:
        """Prefix of the lines that this process prints."""
        return "" if self.is_single else f"process {self.rank + 1} of {self.world_size}: "

    def select_gpu(self) -> None:
        """Makes "cuda" this process's GPU; processes may share GPUs."""
        import torch

        if not self.is_single and torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())


def current_process() -> Process:
    """Reads RANK, WORLD_SIZE and LOCAL_RANK; without them this is the only process.

    Raises `UserError` if they are not numbers, or if the rank is not below the world size.
    """
    defaults = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": os.environ.get("RANK", "0")}
    values = {name: os.environ.get(name) or default for name, default in defaults.items()}
    if not all(text.isdecimal() for text in values.values()):
        raise UserError(f"{values}: these environment variables must be numbers, or unset")
    rank, world_size, local_rank = map(int, values.values())
    if rank >= world_size:
        raise UserError(f"RANK={rank} and WORLD_SIZE={world_size}: the rank must be smaller")
    return Process(rank, world_size, local_rank)

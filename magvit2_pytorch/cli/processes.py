"""Which of several processes this one is, as torchrun and accelerate launch say it."""

import os
from typing import NamedTuple

from magvit2_pytorch.cli.errors import UserError


class Process(NamedTuple):
    """Number `rank` of `world_size`, and `local_rank` on its machine."""

    rank: int
    world_size: int
    local_rank: int

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    @property
    def prefix(self) -> str:
        """Begins a line that several processes print."""
        return "" if self.alone else f"process {self.rank + 1} of {self.world_size}: "

    def select_gpu(self) -> None:
        """Makes "cuda" mean this process's GPU; processes share GPUs where they are more."""
        import torch

        if not self.alone and torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())


def current_process() -> Process:
    """From RANK, WORLD_SIZE and LOCAL_RANK; the only one where they are not set.

    Raises `UserError` where they are no numbers, or the rank is beyond the world.
    """
    names = {"RANK": "0", "WORLD_SIZE": "1"}
    names["LOCAL_RANK"] = os.environ.get("RANK", "0")
    said = {name: os.environ.get(name) or default for name, default in names.items()}
    if not all(text.isdecimal() for text in said.values()):
        raise UserError(f"{said}: the environment should hold numbers; unset them, or mend them")
    rank, world_size, local_rank = map(int, said.values())
    if rank >= world_size:
        raise UserError(f"RANK={rank} and WORLD_SIZE={world_size}: ranks go from 0 up to one less")
    return Process(rank, world_size, local_rank)

"""A training on two processes, of which rank 1 is lost in the middle of a step."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from magvit2_pytorch import VideoTokenizerTrainer
from tests.training import two_processes_worker as worker

TIMEOUT_S = 10.0
"""After this long without an answer a process is lost."""


def lose(way: str) -> None:
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def start_both(script: list[object]) -> tuple[int, str]:
    """Both ranks without a launcher, which would end one for the other; rank 0's end and words."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, *map(str, script)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = ranks[0].communicate(timeout=120)[1]
    finally:
        for rank in ranks:
            rank.kill()
    return ranks[0].returncode, said


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    folder, way = Path(sys.argv[1]), sys.argv[2]
    trainer_step = VideoTokenizerTrainer.train_step

    def train_step(self, *args):
        if self.step == 3 and self.accelerator.process_index == 1:
            # Between the forward and the backward pass, while rank 0 waits for its gradients.
            torch.Tensor.backward = lambda *_, **__: lose(way)
        trainer_step(self, *args)

    VideoTokenizerTrainer.train_step = train_step
    worker.train(folder, 2, "plain", process_timeout_s=TIMEOUT_S)

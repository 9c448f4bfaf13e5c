"""A training on two processes, of which rank 1 is lost in the middle of a step."""

import os
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from magvit2_pytorch import VideoTokenizerTrainer
from tests.training import two_processes_worker as worker


def lose(way: str) -> None:
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def main(folder: Path, way: str, **options) -> None:
    """Rank 1 is killed, or hangs, at step 3."""
    trainer_step = VideoTokenizerTrainer.train_step

    def train_step(self, *args):
        if self.step == 3 and self.accelerator.process_index == 1:
            # Between the forward and the backward pass, while rank 0 waits for its gradients.
            torch.Tensor.backward = lambda *_, **__: lose(way)
        trainer_step(self, *args)

    VideoTokenizerTrainer.train_step = train_step
    worker.train(folder, 2, "plain", **options)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "kill")

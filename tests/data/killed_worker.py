"""Training whose data worker is killed after the first steps; prints how it ends."""

import json
import os
import tempfile
import time
from pathlib import Path

from torch import multiprocessing

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer


def main(folder: Path, then: str) -> None:
    """`then` is "waiting" or "computing"."""
    # Not below the folder: workers hand tensors over by sockets, whose whole path has 107 letters.
    temporary = Path(tempfile.mkdtemp(prefix="kill-"))
    tempfile.tempdir = str(temporary)
    trainer = VideoTokenizerTrainer(
        VideoTokenizer.from_preset("tiny"),
        dataset_folder=folder,
        num_frames=5,
        num_workers=1,
        num_train_steps=100_000,
        results_folder=str(folder / "results"),
        checkpoints_folder=str(folder / "checkpoints"),
        progress_bar=False,
    )
    true_step = trainer.train_step

    def step(*args):
        true_step(*args)
        if trainer.step == 2:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, 9)
            if then == "computing":
                time.sleep(60)

    trainer.train_step = step
    try:
        trainer.train()
    except Exception as error:
        said = {"error": type(error).__name__, "text": str(error), "steps": trainer.step}
        print(json.dumps({**said, "temporary": str(temporary)}))

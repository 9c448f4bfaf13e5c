"""A training of the second task by two processes; each writes the weights it ends with."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.training.denoiser import denoising

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    trainer = denoising(folder, batch_size=2)
    trainer.train()
    accelerator = trainer.accelerator
    torch.save(trainer.state.gather(8, 0.0)[0], folder / f"rank-{accelerator.process_index}.pt")
    accelerator.end_training()

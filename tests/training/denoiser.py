"""A second task, as short as one can be: a small network that removes noise from waves."""

import torch
from safetensors.torch import save_file
from torch import nn

from magvit2_pytorch.data.loader import InfiniteBatches
from magvit2_pytorch.training.loop_config import LoopConfig
from magvit2_pytorch.training.task import Best, Task, Trainable, Validation
from magvit2_pytorch.training.trainer import Trainer

WAVES = [torch.sin(torch.arange(8.0) * (0.2 + 0.1 * number)) for number in range(12)]


class Denoiser(Task):
    best = Best("valid/error", "min")

    def __init__(self, config: LoopConfig):
        self.config = config
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
        options = config.optimizer_options()
        self.trainables = {"denoiser": Trainable(module=self.model, options=options)}

    def batches(self, start, kind=None):
        rank, number = self.accelerator.process_index, self.accelerator.num_processes
        size, seed = self.config.batch_size, self.config.seed
        return iter(
            InfiniteBatches(WAVES, size, position=start, seed=seed, rank=rank, world_size=number)
        )

    def step(self, batch, micro):
        noise = torch.rand((), generator=micro.generator)
        loss = (micro.modules["denoiser"](batch + noise) - batch).square().mean()
        micro.backward(loss)
        return {"loss": loss}

    @torch.no_grad()
    def validate(self, model, path, quick=False):
        waves = torch.stack(WAVES)
        return Validation({"valid/error": float((model(waves + 0.5) - waves).square().mean())}, {})

    def finish(self, model, folder, quick=False):
        if self.accelerator.is_main_process:
            save_file(model.state_dict(), folder / "denoiser.safetensors")
        return {}

    def describe(self):
        return {"width": 16}


def denoising(folder, **options) -> Trainer:
    """A trainer of the task, in a folder of its own."""
    defaults = dict(
        batch_size=4, num_train_steps=8, learning_rate=1e-2, warmup_steps=0, log_every_step=1,
        progress_bar=False, results_folder=str(folder), checkpoints_folder=str(folder / "saved"),
    )  # fmt: skip
    config = LoopConfig(**(defaults | options))
    return Trainer(Denoiser(config), config)

"""Small trainings on clips made of moving gradients: seconds, no files."""

import pytest
import torch

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.training.task import MicroStep
from tests.conftest import QUANTIZERS, SMALL


def clips(number=6, num_frames=5, size=16):
    """Smooth moving patterns in [-1, 1]: something a small tokenizer can learn in seconds."""
    generator = torch.Generator().manual_seed(1)
    t = torch.arange(num_frames)[:, None, None] / num_frames
    y = torch.arange(size)[:, None] / size
    x = torch.arange(size) / size
    items = []
    for _ in range(number):
        a, b, c = torch.rand(3, 3, 1, 1, 1, generator=generator) * 6
        items.append(torch.sin(a * t + b * y + c * x))
    return items


def micro_step(trainer, step=0, num_passes=1):
    """A pass of this optimizer step, with draws of its own."""
    return MicroStep(step, torch.Generator(), num_passes, trainer.accelerator, trainer.modules)


@pytest.fixture
def make_trainer(tmp_path):
    """Builds a trainer in a folder of its own; equal arguments give equal weights and data."""

    def make(name="run", quantizer="fsq", layers=("compress_space", "residual"), **options):
        torch.manual_seed(0)
        model = VideoTokenizer(**SMALL, **QUANTIZERS[quantizer], layers=layers)
        defaults = dict(
            dataset=clips(),
            batch_size=2,
            num_train_steps=6,
            learning_rate=3e-3,
            warmup_steps=0,
            results_folder=str(tmp_path / name),
            checkpoints_folder=str(tmp_path / name / "checkpoints"),
            progress_bar=False,
            log_every_step=1,
        )
        return VideoTokenizerTrainer(model, **(defaults | options))

    return make

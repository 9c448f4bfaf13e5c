"""Devices and processes: accelerate's, set up from the configuration."""

from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from magvit2_pytorch.training.config import TrainingConfig


def build_accelerator(config: TrainingConfig, kwargs: dict[str, Any]) -> Accelerator:
    """Devices, processes and trackers as the configuration asks; `kwargs` go before all else."""
    trackers = [
        name
        for name, used in (
            ("wandb", config.use_wandb_tracking),
            ("tensorboard", config.use_tensorboard_tracking),
        )
        if used
    ]
    defaults = dict(
        # Without an accelerator, several processes only find each other when told so.
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        # Only for its gradient scaler: accelerate keeps one precision for a whole process.
        mixed_precision="fp16" if config.precision == "fp16" else "no",
        log_with=trackers or None,
        project_dir=config.results_folder,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=False)],
    )
    return Accelerator(**(defaults | kwargs))

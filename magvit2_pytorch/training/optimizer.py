"""Optimizers by name, with weight decay where it belongs."""

from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from magvit2_pytorch.training.config import TrainingConfig


def build_optimizer(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """Weights of convolutions and matrices decay, gains and biases do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if p.ndim >= 2],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    kind = {"adam": Adam, "adamw": AdamW}[config.optimizer]
    return kind(groups, lr=config.learning_rate, betas=config.betas)

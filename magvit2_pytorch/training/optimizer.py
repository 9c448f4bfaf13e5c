"""Optimizers by name, each parameter with the one that suits it."""

from torch import nn
from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer

from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.config import TrainingConfig
from magvit2_pytorch.training.muon import Muon


def build_optimizers(tokenizer: VideoTokenizer, config: TrainingConfig) -> list[Optimizer]:
    """One optimizer, or Muon and AdamW side by side; all follow one schedule.

    Weights of convolutions and matrices decay, gains and biases do not. A group's `lr_factor`
    is its learning rate's ratio to the run's.
    """
    if config.optimizer != "muon":
        kind = {"adam": Adam, "adamw": AdamW}[config.optimizer]
        groups = decay_groups(tokenizer.parameters(), config.weight_decay)
        return [kind(groups, lr=config.learning_rate, betas=config.betas)]

    wide, rest = split_for_muon(tokenizer)
    muon = Muon(wide, lr=config.learning_rate, weight_decay=config.weight_decay)
    groups = decay_groups(rest, config.weight_decay)
    for group in groups:
        group["lr_factor"] = config.muon_adam_lr_factor
    lr = config.learning_rate * config.muon_adam_lr_factor
    return [muon, AdamW(groups, lr=lr, betas=config.betas)]


def decay_groups(parameters, weight_decay: float) -> list[dict]:
    """Two groups: weights of two axes and more, which decay, and the rest, which do not."""
    parameters = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def split_for_muon(tokenizer: VideoTokenizer) -> tuple[list[Parameter], list[Parameter]]:
    """Kernels and matrices for Muon; all else, and the two projections to and from the code.

    The projections have a few channels on one side: their singular values carry the scale of
    the code, which orthogonal steps would not let differ from channel to channel.
    """
    to_code: nn.Module = tokenizer.encoder.layers[-1]
    from_code: nn.Module = tokenizer.decoder.layers[0]
    apart = {id(p) for module in (to_code, from_code) for p in module.parameters()}
    wide, rest = [], []
    for parameter in tokenizer.parameters():
        if parameter.requires_grad:
            is_wide = parameter.ndim >= 2 and id(parameter) not in apart
            (wide if is_wide else rest).append(parameter)
    return wide, rest

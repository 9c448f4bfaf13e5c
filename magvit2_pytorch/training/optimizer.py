"""Optimizers by name, each parameter with the one that suits it."""

from typing import Any

import torch
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
        return [build_adam(kind, groups, config.learning_rate, config.betas)]

    wide, rest = split_for_muon(tokenizer)
    muon = Muon(wide, lr=config.learning_rate, weight_decay=config.weight_decay)
    groups = decay_groups(rest, config.weight_decay)
    for group in groups:
        group["lr_factor"] = config.muon_adam_lr_factor
    lr = config.learning_rate * config.muon_adam_lr_factor
    return [muon, build_adam(AdamW, groups, lr, config.betas)]


def build_adam(
    kind: type[Adam] | type[AdamW],
    groups: list[dict[str, Any]],
    learning_rate: float,
    betas: tuple[float, float],
) -> Optimizer:
    """Adam in one pass over memory where torch has that: exact, and without temporaries.

    On two CPU cores it takes a quarter of the time of the loop over parameters that is torch's
    default there (benchmarks/LOG.md, section 17).
    """
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    optimizer = kind(groups, lr=learning_rate, betas=betas, fused=fused)
    if fused:
        optimizer.register_step_pre_hook(_lay_out_alike)
    return optimizer


def _lay_out_alike(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    """Gradients and moments in the memory order of their weights.

    Fused Adam walks over memory and takes that for granted: a gradient in another order, or
    moments from a file, would silently go to the wrong weights of a channels-last kernel.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and weight.grad.stride() != weight.stride():
                weight.grad = torch.empty_like(weight).copy_(weight.grad)
            state = optimizer.state.get(weight, {})
            for name, value in state.items():
                if value.shape == weight.shape and value.stride() != weight.stride():
                    state[name] = torch.empty_like(weight).copy_(value)


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

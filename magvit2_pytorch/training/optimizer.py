"""Optimizers of the tokenizer and of discriminators."""

from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer

from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.config import TrainingConfig
from magvit2_pytorch.training.muon import Muon


def build_optimizers(tokenizer: VideoTokenizer, config: TrainingConfig) -> list[Optimizer]:
    """One optimizer, or Muon and AdamW together on the same schedule.

    Convolution kernels and matrices have weight decay, gains and biases do not. A group's
    `lr_factor` is the ratio of its learning rate to that of the run.
    """
    if config.optimizer != "muon":
        optimizer_class = {"adam": Adam, "adamw": AdamW}[config.optimizer]
        groups = decay_groups(tokenizer.parameters(), config.weight_decay)
        return [build_adam(optimizer_class, groups, config.learning_rate, config.betas)]

    matrices, rest = split_for_muon(tokenizer)
    muon = Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay)
    groups = decay_groups(rest, config.weight_decay)
    for group in groups:
        group["lr_factor"] = config.muon_adam_lr_factor
    lr = config.learning_rate * config.muon_adam_lr_factor
    return [muon, build_adam(AdamW, groups, lr, config.betas)]


def build_adam(
    optimizer_class: type[Adam] | type[AdamW],
    groups: list[dict[str, Any]],
    learning_rate: float,
    betas: tuple[float, float],
) -> Optimizer:
    """Adam or AdamW, fused if torch supports it.

    The fused version is exact and needs no temporary tensors. On two CPU cores it takes a quarter
    of the time of torch's default, a loop over parameters (benchmarks/LOG.md, section 17).
    """
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    optimizer = optimizer_class(groups, lr=learning_rate, betas=betas, fused=fused)
    if fused:
        optimizer.register_step_pre_hook(_match_memory_format)
    return optimizer


def _match_memory_format(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    """Copies gradients and moments whose strides differ from those of their weights.

    Fused Adam iterates over memory and assumes equal strides. A gradient in another memory format,
    or moments from a file, would silently update the wrong weights of a channels-last kernel.
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
    """Two parameter groups: two or more axes with weight decay, others without."""
    parameters = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def split_for_muon(tokenizer: VideoTokenizer) -> tuple[list[Parameter], list[Parameter]]:
    """Kernels and matrices for Muon, and all other parameters.

    The projections to and from the quantizer are among the others. They have few channels on one
    side, and their singular values carry the scale of each latent channel, which orthogonal steps
    would make equal.
    """
    projections: tuple[nn.Module, ...] = (tokenizer.encoder.layers[-1], tokenizer.decoder.layers[0])
    excluded = {id(p) for module in projections for p in module.parameters()}
    matrices, rest = [], []
    for parameter in tokenizer.parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim >= 2 and id(parameter) not in excluded
            (matrices if is_matrix else rest).append(parameter)
    return matrices, rest

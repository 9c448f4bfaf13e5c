"""Muon, Adam, their learning-rate schedule, and averaged weights."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from ema_pytorch import EMA
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer

from magvit2_pytorch.layers.arithmetic import CONVS
from magvit2_pytorch.training.loop_config import LoopConfig, OptimizerOptions


def lr_scale(
    step: int,
    num_steps: int,
    warmup_steps: int = 0,
    schedule: Literal["cosine", "linear", "constant"] = "cosine",
    final_fraction: float = 0.0,
    time_progress: float = 0.0,
) -> float:
    """Factor of the learning rate at optimizer step `step`, counted from 0.

    Warm-up grows linearly to 1 and takes at most a tenth of the run. `time_progress` is the
    fraction of the time budget that is used up (0 without one): the decay follows steps or time,
    whichever is further on.
    """
    warmup_steps = min(warmup_steps, num_steps // 10)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    progress = min(1.0, max(progress, time_progress))
    if schedule == "constant":
        return 1.0
    decay = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return final_fraction + (1 - final_fraction) * decay


def build_ema(model: nn.Module, config: LoopConfig, not_averaged: Iterable[str] = ()) -> EMA:
    """Moving average of the model's weights, but of names in `not_averaged`."""
    return EMA(
        model,
        beta=config.ema_decay,
        update_every=config.ema_update_every,
        update_after_step=0,
        include_online_model=False,
        ignore_names=set(not_averaged),
    )


# A quintic that drives singular values from (0, 1] to about 1 in five rounds.
# Source: Muon (Keller Jordan et al., 2024), whose coefficients these are.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Float[Tensor, "g m n"], rounds: int = 5) -> Float[Tensor, "g m n"]:
    """The same singular vectors with singular values of 0.7 to 1.2.

    Newton-Schulz iteration on the Gram matrix of the shorter side, which is small.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT, rounds).mT
    a, b, c = QUINTIC
    gram = matrices @ matrices.mT
    # The trace bounds the largest singular value's square from above.
    trace = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(gram.dtype).tiny)
    trace = trace[:, None, None]
    gram = gram / trace
    product = None
    for number in range(rounds):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if number < rounds - 1:
            gram = factor @ gram @ factor
    return (product * trace.rsqrt()) @ matrices


class Muon(Optimizer):
    """Orthogonalized steps for convolution kernels and matrices, each as out x fan_in.

    The step is `lr` times the orthogonal factor of the Nesterov momentum, times sqrt(out / fan_in)
    if out is larger than fan_in. Kernels of a parameter group with `groups` are as many matrices,
    one below the other. All other parameters (gains, biases) need another optimizer.
    Source: Muon (Keller Jordan et al., 2024).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, groups=1)
        super().__init__(params, defaults)
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.ndim < 2:
                raise ValueError(
                    "Muon takes parameters of two or more axes, not one of shape "
                    f"{tuple(parameter.shape)}"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)
        return loss

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum, gradient, beta = state["momentum"], parameter.grad, group["momentum"]
        momentum.lerp_(gradient, 1 - beta)
        nesterov = gradient.lerp(momentum, beta).float()
        # Channels last: a view of kernels in that memory format, a copy of others.
        rows = nesterov.movedim(1, -1)
        matrices = rows.flatten(1).unflatten(0, (group["groups"], -1))
        step = orthogonalize(matrices).reshape(rows.shape).movedim(-1, 1)
        out, fan_in = matrices.shape[1:]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(step.to(parameter), alpha=-group["lr"] * max(1.0, out / fan_in) ** 0.5)


def build_optimizers(
    module: nn.Module, options: OptimizerOptions, not_for_muon: Iterable[nn.Module] = ()
) -> list[Optimizer]:
    """One optimizer, or Muon and AdamW together on the same schedule.

    Convolution kernels and matrices have weight decay, gains and biases do not. A group's
    `lr_factor` is the ratio of its learning rate to that of the run.
    """
    if options.optimizer != "muon":
        optimizer_class = {"adam": Adam, "adamw": AdamW}[options.optimizer]
        groups = decay_groups(module.parameters(), options.weight_decay)
        return [build_adam(optimizer_class, groups, options.learning_rate, options.betas)]

    matrices, rest = split_for_muon(module, not_for_muon)
    by_groups: dict[int, list[Parameter]] = {}
    for parameter, groups in matrices.items():
        by_groups.setdefault(groups, []).append(parameter)
    muon = Muon(
        [dict(params=params, groups=groups) for groups, params in by_groups.items()],
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
    )
    groups = decay_groups(rest, options.weight_decay)
    for group in groups:
        group["lr_factor"] = options.muon_adam_lr_factor
    lr = options.learning_rate * options.muon_adam_lr_factor
    return [muon, build_adam(AdamW, groups, lr, options.betas)]


def build_adam(
    optimizer_class: type[Adam] | type[AdamW],
    groups: list[dict[str, Any]],
    learning_rate: float,
    betas: tuple[float, float],
) -> Optimizer:
    """Adam or AdamW, fused if torch supports it."""
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    optimizer = optimizer_class(groups, lr=learning_rate, betas=betas, fused=fused)
    if fused:
        optimizer.register_step_pre_hook(_match_memory_format)
    return optimizer


def _match_memory_format(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    """Copies gradients and moments whose strides differ from those of their weights.

    Fused Adam assumes equal strides: others would silently update the wrong weights.
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


def split_for_muon(
    module: nn.Module, not_for_muon: Iterable[nn.Module] = ()
) -> tuple[dict[Parameter, int], list[Parameter]]:
    """Matrices for Muon with their numbers of groups, and all other parameters."""
    excluded = {p for other in not_for_muon for p in other.parameters()}
    convs = (m for m in module.modules() if isinstance(m, tuple(CONVS.values())))
    num_groups = {conv.weight: conv.groups for conv in convs}
    matrices, rest = {}, []
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.ndim >= 2 and parameter not in excluded:
            matrices[parameter] = num_groups.get(parameter, 1)
        elif parameter.requires_grad:
            rest.append(parameter)
    return matrices, rest

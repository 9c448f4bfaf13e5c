"""The Muon optimizer: steps along the orthogonal factor of the momentum."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

# A quintic that drives singular values from (0, 1] to about 1 in five rounds.
# Source: Muon (Keller Jordan et al., 2024), whose coefficients these are.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Float[Tensor, "m n"], rounds: int = 5) -> Float[Tensor, "m n"]:
    """Matrix with the same singular vectors and singular values near 1.

    Singular values become 0.7 to 1.2. Newton-Schulz iteration on the Gram matrix of the shorter
    side: for a kernel of 256 x 2304 a round multiplies matrices of 256 x 256, and the long side is
    used only twice in all.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalize(matrix.T, rounds).T
    a, b, c = QUINTIC
    gram = matrix @ matrix.T
    # The trace bounds the largest singular value's square from above.
    trace = gram.trace().clamp_min(torch.finfo(gram.dtype).tiny)
    gram = gram / trace
    product = None
    for _ in range(rounds):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        gram = factor @ gram @ factor
    return (product * trace.rsqrt()) @ matrix


class Muon(Optimizer):
    """Orthogonalized steps for convolution kernels and matrices, each as out x fan_in.

    The step is `lr` times the orthogonal factor of the Nesterov momentum, times sqrt(out / fan_in)
    if out is larger than fan_in. All other parameters (gains, biases) need another optimizer.
    Source: Muon (Keller Jordan et al., 2024).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
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
        step = orthogonalize(rows.flatten(1)).view(rows.shape).movedim(-1, 1)
        out, fan_in = parameter.shape[0], parameter[0].numel()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(step.to(parameter), alpha=-group["lr"] * max(1.0, out / fan_in) ** 0.5)

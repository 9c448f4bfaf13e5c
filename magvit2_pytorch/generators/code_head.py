"""The distribution of a code, given a transformer's output."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.functional import at_least_float32
from magvit2_pytorch.generators.code_space import CodeSpace
from magvit2_pytorch.layers.arithmetic import Linear

HeadName = Literal["chain", "independent"]

Choose = Callable[[int, Tensor], Tensor]
"""Draws values `*n` of a sub-token, given its number and logits `*n v`."""


class CodeHead(nn.Module):
    """Probabilities of a code's sub-tokens, one after the other.

    With "chain" each sub-token is given those before it, so their product is the exact probability
    of the code, and every code can be drawn. With "independent" none is given any: as in Infinity
    (arXiv 2412.04431), for comparison.
    """

    def __init__(self, dim: int, code_space: CodeSpace, name: HeadName = "chain"):
        super().__init__()
        if name not in ("chain", "independent"):
            raise ValueError(f"head {name!r}: use 'chain' or 'independent'")
        sizes = [part.size for part in code_space.sub_tokens]
        self.to_logits = nn.ModuleList(
            nn.Sequential(Linear(dim, 2 * dim), nn.SiLU(), Linear(2 * dim, size)) for size in sizes
        )
        given = sizes[:-1] if name == "chain" else []
        self.feedback = nn.ModuleList(nn.Embedding(size, dim) for size in given)
        for layer in self.to_logits:
            # Small, so that an untrained model gives all codes the same probability.
            nn.init.normal_(layer[-1].weight, std=1e-3)
            nn.init.zeros_(layer[-1].bias)
        for embedding in self.feedback:
            nn.init.normal_(embedding.weight, std=dim**-0.5)

    def nll(
        self, x: Float[Tensor, "*n c"], sub_tokens: Int[Tensor, "*n g"]
    ) -> Float[Tensor, "*n g"]:
        """Negative log probability of each sub-token, in nats, in at least float32."""
        losses = []
        for number, to_logits in enumerate(self.to_logits):
            value = sub_tokens[..., number]
            logits = at_least_float32(to_logits(x))
            loss = F.cross_entropy(logits.flatten(0, -2), value.flatten(), reduction="none")
            losses.append(loss.view_as(value))
            x = self._given(x, number, value)
        return torch.stack(losses, dim=-1)

    def draw(self, x: Float[Tensor, "*n c"], choose: Choose) -> Int[Tensor, "*n g"]:
        """Sub-tokens chosen one by one from logits in at least float32."""
        values = []
        for number, to_logits in enumerate(self.to_logits):
            values.append(choose(number, at_least_float32(to_logits(x))))
            x = self._given(x, number, values[-1])
        return torch.stack(values, dim=-1)

    def _given(self, x: Tensor, number: int, value: Tensor) -> Tensor:
        if number >= len(self.feedback):
            return x
        return x + self.feedback[number](value).to(x.dtype)

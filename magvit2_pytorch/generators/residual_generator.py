"""Generation of residual levels: a transformer over cells, another over levels."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from magvit2_pytorch.generators.autoregressive import (
    AutoregressiveConfig,
    AutoregressiveGenerator,
)
from magvit2_pytorch.generators.code_head import Choose, CodeHead, HeadName
from magvit2_pytorch.generators.code_space import CodeSpace
from magvit2_pytorch.generators.generator import GENERATORS
from magvit2_pytorch.layers.transformer import (
    Transformer,
    TransformerSize,
    attend_all,
    attend_causal,
)


class DepthHead(nn.Module):
    """Probabilities of a position's codes, by a transformer over levels.

    Level i sees h + e_1 + ... + e_(i - 1), the output at the position and the embedded codes of the
    levels before it, and the same of these levels. Each level has a `CodeHead`.
    Source: RQ-Transformer (arXiv 2203.01941), section 3.2.2.
    """

    def __init__(self, size: TransformerSize, code_space: CodeSpace, name: HeadName = "chain"):
        super().__init__()
        spaces = [CodeSpace((levels,), code_space.group) for levels in code_space.levels]
        self.counts = [len(space.sub_tokens) for space in spaces]
        self.heads = nn.ModuleList(CodeHead(size.dim, space, name) for space in spaces)
        self.codes = nn.ModuleList(
            nn.ModuleList(nn.Embedding(part.size, size.dim) for part in space.sub_tokens)
            for space in spaces[:-1]
        )
        for embedding in (one for level in self.codes for one in level):
            nn.init.normal_(embedding.weight, std=size.dim**-0.5)
        self.places = nn.Parameter(torch.randn(len(spaces), size.dim) * 0.02)
        self.transformer = Transformer(size)

    def nll(
        self, x: Float[Tensor, "*n c"], sub_tokens: Int[Tensor, "*n g"]
    ) -> Float[Tensor, "*n g"]:
        """Negative log probability of each sub-token, in nats, in at least float32."""
        levels = sub_tokens.flatten(0, -2).split(self.counts, dim=-1)
        sums = [x.flatten(0, -2)]
        for number in range(len(self.codes)):
            sums.append(sums[-1] + self._embedded(number, levels[number], x))
        inputs = torch.stack(sums, dim=1) + self.places.to(x.dtype)
        outs, _ = self.transformer(inputs, None, attend_causal)
        parts = zip(self.heads, outs.unbind(1), levels, strict=True)
        return torch.cat([head.nll(out, level) for head, out, level in parts], dim=-1).view_as(
            sub_tokens
        )

    def draw(self, x: Float[Tensor, "*n c"], choose: Choose) -> Int[Tensor, "*n g"]:
        """Sub-tokens chosen one by one from logits in at least float32."""
        shape, x = x.shape[:-1], x.flatten(0, -2)
        past, values, first = None, [], 0
        for number, head in enumerate(self.heads):
            place = x + self.places[number].to(x.dtype)
            out, past = self.transformer(place[:, None], None, attend_all, past)

            def choose_here(part: int, logits: Tensor, first: int = first) -> Tensor:
                logits = logits.view(*shape, -1)
                return choose(first + part, logits).flatten()

            values.append(head.draw(out[:, 0], choose_here))
            first += self.counts[number]
            if number < len(self.codes):
                x = x + self._embedded(number, values[-1], x)
        return torch.cat(values, dim=-1).view(*shape, -1)

    def _embedded(self, number: int, level: Int[Tensor, "n g"], like: Tensor) -> Tensor:
        """Sum of the embedded sub-tokens of a level."""
        parts = zip(self.codes[number], level.unbind(-1), strict=True)
        return sum(embedding(value) for embedding, value in parts).to(like.dtype)


@dataclass(frozen=True, kw_only=True)
class ResidualConfig(AutoregressiveConfig):
    """Options of a `ResidualGenerator`."""

    kind: Literal["residual"] = "residual"
    depth_layers: int = 2
    """Blocks of the transformer over levels; with 0, or one level, codes are the chain
    of an `AutoregressiveGenerator`."""

    def __post_init__(self):
        super().__post_init__()
        if self.depth_layers < 0:
            raise ValueError(f"depth_layers is {self.depth_layers}: give 0 or more")


@GENERATORS.register("residual")
class ResidualGenerator(AutoregressiveGenerator):
    """An `AutoregressiveGenerator` whose codes at a cell are drawn level by level.

    Known codes enter as the sum of the embeddings of all their levels. Sources: RQ-Transformer
    (arXiv 2203.01941); order, neighbours and streams are those of `AutoregressiveGenerator`.
    """

    config_class = ResidualConfig
    config: ResidualConfig

    def __init__(self, **options):
        super().__init__(**options)
        config = self.config
        if config.depth_layers and len(config.levels) > 1:
            size = TransformerSize(config.dim, config.depth_layers, config.heads)
            self.head = DepthHead(size, self.code_space, config.head)

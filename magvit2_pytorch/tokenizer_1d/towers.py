"""Encoder and decoder of 1-D tokens, transformers over tokens and patches together."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.functional import own_copy
from magvit2_pytorch.layers.arithmetic import Linear
from magvit2_pytorch.layers.rotary import axis_pairs, position_angles
from magvit2_pytorch.layers.transformer import (
    KeyValues,
    Span,
    Transformer,
    TransformerSize,
    attend_all,
    attend_spans,
)
from magvit2_pytorch.tokenizer_1d.patches import (
    NUM_FEATURES,
    Block,
    anchor_distances,
    position_features,
)

Layout = Sequence[Block]
"""The blocks of a video: one, or several of which each sees those before it."""
Rows = Float[Tensor, "_ _ _"]
"""Patches or latents of samples with one layout, in the order of its blocks."""


class Tower(nn.Module, ABC):
    """A transformer over tokens and patches of samples of any size.

    A block's tokens come first, then its patches. All of a block see each other, and the
    `window` - 1 blocks before. Samples are packed behind each other into one sequence.
    """

    def __init__(self, size: TransformerSize, anchored: bool, theta: float, window: int):
        super().__init__()
        self.anchored, self.theta, self.window = anchored, theta, window
        self.pairs = axis_pairs(size.dim_head // 2, (1, 1, 1))
        self.transformer = Transformer(size)
        self.from_position = Linear(NUM_FEATURES, size.dim, bias=False)

    @abstractmethod
    def num_rows(self, block: Block) -> int:
        """Rows of the input that belong to a block."""

    @abstractmethod
    def embed(self, rows: Rows, block: Block) -> Float[Tensor, "b m c"]:
        """Tokens and patches of a block at the transformer's input."""

    @abstractmethod
    def read(self, x: Float[Tensor, "b m c"], block: Block) -> Rows:
        """Rows of the output from a block at the transformer's output."""

    def forward(self, inputs: Sequence[Rows], layouts: Sequence[Layout]) -> list[Rows]:
        """Output rows of groups of samples, each with one layout.

        Whatever else is in the pack, a sample's result is that of the sample alone.
        """
        xs, angles, pairs, end = [], [], [], 0
        for rows, layout in zip(inputs, layouts, strict=True):
            parts = rows.split([self.num_rows(block) for block in layout], dim=1)
            parts = [self.embed(part, block) for part, block in zip(parts, layout, strict=True)]
            xs.append(torch.cat(parts, dim=1))
            turns = torch.cat([self._angles(block, xs[-1]) for block in layout])
            angles.append(turns.repeat(len(rows), 1))
            for _ in range(len(rows)):
                pairs += self._pairs(layout, end)
                end += len(turns)
        packed = torch.cat([x.flatten(0, 1) for x in xs])[None]
        out, _ = self.transformer(packed, torch.cat(angles), attend_spans(pairs))
        outs = out[0].split([x.shape[0] * x.shape[1] for x in xs])
        return [
            self._read_all(part.view(x.shape), layout)
            for part, x, layout in zip(outs, xs, layouts, strict=True)
        ]

    def step(
        self, rows: Rows, block: Block, past: Sequence[KeyValues] | None, keep: int
    ) -> tuple[Rows, tuple[KeyValues, ...]]:
        """Output rows of the next block, given earlier keys and values.

        Keys and values of the last `keep` tokens and patches, this block's included, are returned
        for the next one.
        """
        x = self.embed(rows, block)
        out, past = self.transformer(x, self._angles(block, x), attend_all, past)
        drop = past[0][0].shape[2] - keep
        past = tuple((own_copy(k[:, :, drop:]), own_copy(v[:, :, drop:])) for k, v in past)
        return self.read(out, block), past

    def _pairs(self, layout: Layout, start: int) -> list[tuple[Span, Span]]:
        """Spans of queries and keys of a sample that begins at `start`."""
        starts = [start]
        for block in layout:
            starts.append(starts[-1] + block.length)
        first = [max(0, number + 1 - self.window) for number in range(len(layout))]
        return [
            ((starts[number], starts[number + 1]), (starts[first[number]], starts[number + 1]))
            for number in range(len(layout))
        ]

    def _read_all(self, x: Float[Tensor, "b m c"], layout: Layout) -> Rows:
        parts = x.split([block.length for block in layout], dim=1)
        return torch.cat([self.read(p, block) for p, block in zip(parts, layout, strict=True)], 1)

    def _angles(self, block: Block, like: Tensor) -> Float[Tensor, "m f"]:
        positions = block.positions(self.anchored).to(like.device)
        return position_angles(positions, self.pairs, self.theta, like.dtype)

    def _positions(self, block: Block) -> Float[Tensor, "n c"]:
        features = position_features(block.grid, block.num_frames or block.grid[0])
        return self.from_position(features.to(self.from_position.weight))

    def _weights(self, block: Block, dim: int) -> Float[Tensor, "k n"]:
        """Softmax of minus the squared distances, over tokens (0) or patches (1)."""
        weight = self.from_position.weight
        distances = anchor_distances(block.grid, block.count, weight.device)
        return (-distances).softmax(dim).to(weight)


class Encoder(Tower):
    """Patches to latents of tokens."""

    def __init__(self, size: TransformerSize, patch_dim: int, latent_dim: int, **options):
        super().__init__(size, **options)
        self.from_patch = Linear(patch_dim, size.dim)
        self.token = nn.Parameter(torch.randn(size.dim) * 0.02)
        self.to_latent = Linear(size.dim, latent_dim)

    def num_rows(self, block: Block) -> int:
        return block.num_patches

    def embed(self, rows: Rows, block: Block) -> Float[Tensor, "b m c"]:
        x = self.from_patch(rows)
        x = x + self._positions(block).to(x)
        tokens = self.token.to(x).expand(len(x), block.count, -1)
        if self.anchored:
            tokens = tokens + self._weights(block, 1).to(x) @ x
        return torch.cat((tokens, x), dim=1)

    def read(self, x: Float[Tensor, "b m c"], block: Block) -> Rows:
        return self.to_latent(x[:, : block.count])


class Decoder(Tower):
    """Quantized latents of tokens to patches."""

    def __init__(self, size: TransformerSize, patch_dim: int, quantized_dim: int, **options):
        super().__init__(size, **options)
        self.from_latent = Linear(quantized_dim, size.dim)
        self.patch = nn.Parameter(torch.randn(size.dim) * 0.02)
        self.to_patch = Linear(size.dim, patch_dim)

    def num_rows(self, block: Block) -> int:
        return block.count

    def embed(self, rows: Rows, block: Block) -> Float[Tensor, "b m c"]:
        tokens = self.from_latent(rows)
        x = (self.patch + self._positions(block)).to(tokens).expand(len(tokens), -1, -1)
        if self.anchored:
            x = x + self._weights(block, 0).to(tokens).T @ tokens
        return torch.cat((tokens, x), dim=1)

    def read(self, x: Float[Tensor, "b m c"], block: Block) -> Rows:
        return self.to_patch(x[:, block.count :])

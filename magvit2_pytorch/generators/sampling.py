"""Drawing values from logits, with random numbers that belong to cells."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from magvit2_pytorch.runtime import keyed_seed

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed number


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options of drawing codes.

    They act on sub-tokens, one after the other: `top_k` of a sub-token is not `top_k` of the code.
    """

    seed: int = 0
    """Seed of all draws. A cell's draw depends on seed, sample number, frame, row and column only,
    so batches, chunks and devices change a film by rounding only."""
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely value."""
    top_k: int | None = None
    """Draw among this many most likely values."""
    top_p: float = 1.0
    """Draw among the most likely values that together have this probability."""
    min_p: float = 0.0
    """Leave out values less likely than this fraction of the most likely one."""
    guidance: float = 0.0
    """Strength s of classifier-free guidance: logits (1 + s) conditional - s unconditional."""

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}: give 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: give at least 1, or None")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: give a number above 0, at most 1")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p is {self.min_p}: give a number from 0 to below 1")

    def guided(self, logits: Float[Tensor, "b *n v"]) -> Float[Tensor, "c *n v"]:
        """Logits with guidance, of conditional ones followed by as many without condition."""
        conditional, plain = logits.chunk(2)
        return conditional + self.guidance * (conditional - plain)

    def choose(
        self, logits: Float[Tensor, "*n v"], uniform: Float[Tensor, "*n"]
    ) -> Int[Tensor, "*n"]:
        """Values drawn by the inverse distribution function at `uniform`."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        probabilities = self._cut((logits / self.temperature).softmax(dim=-1))
        sums = probabilities.cumsum(dim=-1)
        values = (sums <= uniform[..., None] * sums[..., -1:]).sum(dim=-1)
        return values.clamp(max=logits.shape[-1] - 1)

    def _cut(self, probabilities: Float[Tensor, "*n v"]) -> Float[Tensor, "*n v"]:
        """Probabilities without values that options leave out, not summing to 1."""
        if self.top_k is None and self.top_p == 1 and self.min_p == 0:
            return probabilities
        ordered, order = probabilities.sort(dim=-1, descending=True)
        kept = ordered >= self.min_p * ordered[..., :1]
        # The value that reaches top_p is still kept.
        kept &= ordered.cumsum(dim=-1) - ordered < self.top_p
        if self.top_k is not None:
            kept[..., self.top_k :] = False
        return torch.zeros_like(probabilities).scatter_(-1, order, ordered * kept)


def cell_noise(
    seed: int,
    samples: Int[Tensor, " b"],
    frame: int,
    cells: Int[Tensor, "n 2"],
    count: int,
    purpose: str = "cell",
) -> Float[Tensor, "b n g"]:
    """Uniform numbers in (0, 1), `count` for each cell of each sample.

    A number is a hash of seed, purpose, sample, frame, row, column and its place. Source: the
    finalizer of SplitMix64 (doi 10.1145/2660193.2660195).
    """
    start = torch.tensor(keyed_seed(purpose, seed), device=cells.device)
    state = _mix(start + samples[:, None, None] * _GOLDEN)
    state = _mix(state + torch.tensor(frame, device=cells.device) * _GOLDEN)
    for column in cells.unbind(-1):
        state = _mix(state + column[:, None] * _GOLDEN)
    state = _mix(state + torch.arange(count, device=cells.device) * _GOLDEN)
    return ((state >> 41 & 2**23 - 1) + 0.5) * 2.0**-23


def _mix(state: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    # Shifts of signed numbers bring in copies of the sign, which the masks take out.
    state = (state ^ (state >> 30 & 2**34 - 1)) * -4658895280553007687
    state = (state ^ (state >> 27 & 2**37 - 1)) * -7723592293110705685
    return state ^ (state >> 31 & 2**33 - 1)

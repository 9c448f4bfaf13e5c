"""Options of masked generation, and the cells that its steps fix."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from magvit2_pytorch.generators.generator import GeneratorConfig
from magvit2_pytorch.generators.sampling import cell_noise
from magvit2_pytorch.generators.tasks import TASKS, CodeGeometry

FillOrder = Literal["confidence", "halton"]


@dataclass(frozen=True, kw_only=True)
class MaskSchedule:
    """Number of steps, and the order in which cells are fixed."""

    num_steps: int = 12
    confidence_temperature: float = 4.5
    order: FillOrder = "confidence"

    def __post_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}: give 1 or more")
        if self.confidence_temperature < 0:
            raise ValueError(
                f"confidence_temperature is {self.confidence_temperature}: give 0 or more"
            )
        if self.order not in ("confidence", "halton"):
            raise ValueError(f"order {self.order!r}: use 'confidence' or 'halton'")

    def number_left(self, step: int, total: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Cells of `total` that are hidden after step 1, 2, ..."""
        return (math.cos(math.pi / 2 * step / self.num_steps) * total.double()).long()

    def still_hidden(
        self,
        step: int,
        hidden: Bool[Tensor, "b j y x"],
        total: Int[Tensor, " b"],
        certainty: Float[Tensor, " n"],
        uniform: Float[Tensor, " n"],
    ) -> Bool[Tensor, "b j y x"]:
        """Cells that a step leaves hidden, given certainties of new codes.

        The step fixes at least one cell of a sample that has any. `uniform` are random numbers.
        """
        chosen = hidden.flatten(1)
        if self.order == "halton":
            ranks = halton_ranks(tuple(hidden.shape[1:])).to(hidden.device)
            certainty = -ranks.expand(len(hidden), -1)[chosen].to(certainty)
        else:
            gumbel = -(-uniform.log()).log()
            falling = self.confidence_temperature * (1 - step / self.num_steps)
            certainty = certainty + falling * gumbel
        left = torch.minimum(self.number_left(step, total), chosen.sum(dim=1) - 1)
        scores = certainty.new_full(chosen.shape, float("inf"))
        scores = scores.masked_scatter(chosen, certainty)
        return _lowest(scores, left).view(hidden.shape)


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(GeneratorConfig):
    """Options of a `MaskedGenerator`."""

    kind: Literal["masked"] = "masked"
    window: int = 3
    """Latent frames that are generated together, with those that are given."""
    next_frames: int = 1
    """Latent frames to generate at a time after the first `window`; those before are given."""
    tasks: dict[str, float] | None = None
    """Tasks to train, with the weight of each; all alike by default."""
    loss_on: Literal["masked", "all"] = "masked"
    """Cells with a loss; with `all`, visible codes are learned too (MAGVIT)."""
    hint_errors: float = 0.2
    """Share of digits that are wrong in the hints of training, which stand for codes of a video
    with hidden parts."""
    num_steps: int = 12
    """Steps of generation."""
    confidence_temperature: float = 4.5
    """Random part of the confidence by which cells are fixed; it falls to 0 at the last step."""
    order: FillOrder = "confidence"
    """Fix confident cells first, or cells spread evenly over the grid (arXiv 2503.17076)."""
    time_factor: int = 4
    """Frames to a latent frame of the tokenizer; training sets it."""
    space_factor: int = 8
    """Pixels to the side of a code of the tokenizer; training sets it."""
    halo: int | None = None
    """Pixels around its block that a code depends on; None for the full frame. Training sets it."""

    def __post_init__(self):
        super().__post_init__()
        if self.num_tokens is not None:
            raise ValueError(
                "a masked generator completes parts of frames, which tokens of a 1-D tokenizer do "
                "not have: use an autoregressive one, such as ar-tiny"
            )
        if not 1 <= self.next_frames <= self.window:
            raise ValueError(
                f"next_frames is {self.next_frames}: give 1 to {self.window} frames, the window"
            )
        weights = self.task_weights
        for name in weights:
            TASKS[name]
        if not weights or min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"tasks {weights}: give weights of 0 or more, one above 0")
        if self.loss_on not in ("masked", "all"):
            raise ValueError(f"loss_on {self.loss_on!r}: use 'masked' or 'all'")
        if not 0 <= self.hint_errors <= 1:
            raise ValueError(f"hint_errors is {self.hint_errors}: give a share of 0 to 1")
        _ = self.schedule  # raises

    @property
    def task_weights(self) -> dict[str, float]:
        return dict.fromkeys(TASKS, 1.0) if self.tasks is None else self.tasks

    @property
    def geometry(self) -> CodeGeometry:
        return CodeGeometry(self.time_factor, self.space_factor, self.halo)

    @property
    def schedule(self) -> MaskSchedule:
        return MaskSchedule(
            num_steps=self.num_steps,
            confidence_temperature=self.confidence_temperature,
            order=self.order,
        )


def draw_hidden(
    known: Bool[Tensor, "b j y x"], generator: torch.Generator | None = None
) -> Bool[Tensor, "b j y x"]:
    """Cells to hide in training, a random share of those not known.

    The share is cos(pi u / 2) with u uniform in [0, 1).
    """
    ratios = torch.cos(torch.rand(len(known), generator=generator) * (math.pi / 2))
    return choose_hidden(known, ratios, torch.rand(known.shape, generator=generator))


def choose_hidden(
    known: Bool[Tensor, "b j y x"], ratios: Float[Tensor, " b"], scores: Float[Tensor, "b j y x"]
) -> Bool[Tensor, "b j y x"]:
    """Hides a share of unknown cells, those with the lowest scores.

    At least one, if there is any.
    """
    candidates = ~known.flatten(1)
    total = candidates.sum(dim=1)
    number = torch.minimum((ratios * total).long().clamp(min=1), total)
    return _lowest(scores.flatten(1).masked_fill(~candidates, 2.0), number).view(known.shape)


def _lowest(scores: Float[Tensor, "b n"], number: Int[Tensor, " b"]) -> Bool[Tensor, "b n"]:
    """True for so many lowest scores of each row."""
    return scores.argsort(dim=1, stable=True).argsort(dim=1) < number[:, None]


def like_codes(mask: Bool[Tensor, "b j y x"], codes: Tensor) -> Tensor:
    """A mask of cells in the shape of codes."""
    return mask if codes.ndim == 4 else mask[..., None].expand(codes.shape)


def grid_cells(grid: tuple[int, int, int], device: torch.device) -> Int[Tensor, "n 3"]:
    """Frame, row and column of all cells."""
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in grid))


def grid_noise(
    seed: int,
    samples: Int[Tensor, " b"],
    start: int,
    grid: Sequence[int],
    count: int,
    purpose: str,
) -> Float[Tensor, "b n k"]:
    """Uniform numbers of all cells of frames from number `start` on."""
    cells = grid_cells((1, *grid[1:]), samples.device)[:, 1:]
    return torch.cat(
        [
            cell_noise(seed, samples, start + frame, cells, count, purpose)
            for frame in range(grid[0])
        ],
        dim=1,
    )


@lru_cache(maxsize=16)
def halton_ranks(grid: tuple[int, int, int]) -> Int[Tensor, " n"]:
    """Ranks of cells in an order that spreads over the grid.

    The cells that points of the Halton sequence with bases 5, 3 and 2 visit, one after the other;
    those not visited for long come last.
    """
    number = 32 * math.prod(grid)
    index = torch.zeros(number, dtype=torch.long)
    for size, base in zip(grid, (5, 3, 2), strict=True):
        index = index * size + (_radical_inverse(number, base) * size).long()
    seen, first = torch.full((math.prod(grid),), number), torch.arange(number)
    seen = seen.scatter_reduce(0, index, first, "amin")
    return seen.argsort(stable=True).argsort()


def _radical_inverse(number: int, base: int) -> Float[Tensor, " n"]:
    """Numbers 0, 1, ... with digits mirrored at the point."""
    rest, place = torch.arange(number), 1.0
    inverse = torch.zeros(number, dtype=torch.float64)
    while rest.any():
        place /= base
        inverse += rest.remainder(base) * place
        rest = rest.div(base, rounding_mode="floor")
    return inverse

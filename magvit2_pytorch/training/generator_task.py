"""Training of a generator on stored codes as a task."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from magvit2_pytorch.codes.code_windows import CodeWindow, CodeWindows, Stretch, read_grid
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.config import to_tuples
from magvit2_pytorch.data.loader import InfiniteBatches
from magvit2_pytorch.data.split import CODES
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.generators.conditions import GeneratorCondition
from magvit2_pytorch.generators.generator import GENERATORS, Generator
from magvit2_pytorch.training.loop_config import LoopConfig
from magvit2_pytorch.training.task import (
    Best,
    Measured,
    MicroStep,
    Task,
    TaskPlan,
    Trainable,
    Validation,
)

CONTEXT_LATENTS = 8
"""Latent frames before the held-out ones that a validation gives as context."""


@dataclass(frozen=True, kw_only=True)
class GeneratorTrainingConfig(LoopConfig):
    """Options of training a generator: data and objective, and those of the loop."""

    num_latent_frames: int = 3
    """Latent frames of a training window."""
    crop: tuple[int, int] | None = (16, 16)
    """Rows and columns of a training window, cut at random; None for whole frames of one size."""
    condition_dropout: float = 0.1
    """Share of the examples that are trained without their condition, for guidance."""
    corruption: float = 0.0
    """Share of the digits that a generator sees off by one level, up to 0.1: it then goes on from
    its own small errors."""
    valid_frac: float = 0.1
    """Share of the latent frames at the end of each video that is held out."""
    num_valid_latents: int | None = None
    """Number of latent frames to hold out instead of a share."""
    num_valid_clips: int = 16
    """Maximum number of held-out ends of videos in a validation."""

    positive = (*LoopConfig.positive, "num_latent_frames", "num_valid_clips")

    def __post_init__(self):
        super().__post_init__()
        for name, top in (("condition_dropout", 1.0), ("corruption", 1.0), ("valid_frac", 0.9)):
            if not 0 <= getattr(self, name) <= top:
                raise ValueError(f"{name} is {getattr(self, name)}: give a number from 0 to {top}")
        if self.num_valid_latents is not None and self.num_valid_latents < 1:
            raise ValueError(f"num_valid_latents is {self.num_valid_latents}: give 1 or more")
        if self.crop is not None and min(self.crop) < 1:
            raise ValueError(f"crop is {self.crop}: give rows and columns, 1 or more each")


class GeneratorTask(Task):
    """Negative log likelihood of codes; held out is the end of each video."""

    best = Best("valid/bits", "min")
    curves = ("bits", "valid/bits", "learning_rate")
    shown = ("bits",)

    def __init__(
        self,
        generator: Generator,
        config: GeneratorTrainingConfig,
        windows: CodeWindows,
        held_out: tuple[CodesDataset, Sequence[Stretch]],
    ):
        self.model, self.config = generator, config
        self.windows, (self.codes, self.stretches) = windows, held_out
        self.held_out = {
            CODES: {self.codes.paths[v]: stop - start for v, start, stop in held_out[1]}
        }
        self.trainables = {
            "generator": Trainable(
                module=generator,
                options=config.optimizer_options(),
                # Muon is for the blocks' matrices: its steps do not fit tables of codes.
                not_for_muon=tuple(
                    part for name, part in generator.named_children() if name != "transformer"
                ),
                fixed_options=("optimizer",),
            )
        }

    # Training

    def batches(self, start: int, kind: str | None = None) -> Iterator[CodeWindow]:
        device = self.accelerator.device
        batches = InfiniteBatches(
            self.windows,
            self.config.batch_size,
            position=start,
            num_workers=self.config.num_workers,
            seed=self.config.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        for batch in batches:
            yield CodeWindow(*(value.to(device, non_blocking=True) for value in batch))

    def step(self, batch: CodeWindow, micro: MicroStep) -> Measured:
        draws = micro.generator
        kept = torch.rand(len(batch.codes), generator=draws) < 1 - self.config.condition_dropout
        context = self._corrupted(batch.codes, draws)
        with autocast(batch.codes.device, self.config.precision):
            loss, terms = micro.modules["generator"](
                batch.codes,
                self._condition(batch.label),
                kept=kept.to(batch.codes.device),
                starts=batch.start,
                context=context,
                draws=draws,
            )
        micro.backward(loss)
        measured = {f"bits_{number}": term / math.log(2) for number, term in enumerate(terms)}
        return {"loss": loss, "bits": loss.detach() / math.log(2)} | measured

    def _condition(self, labels: Int[Tensor, " b"]) -> GeneratorCondition:
        return GeneratorCondition(classes=labels if self.model.config.classes else None)

    def _corrupted(self, codes: Tensor, draws: torch.Generator) -> Tensor | None:
        """Codes to see, some of whose digits are off by one level.

        A generator then learns to go on from small errors, as its own are. Source: bitwise
        self-correction of Infinity (arXiv 2412.04431).
        """
        if not self.config.corruption:
            return None
        return self.model.code_space.corrupted(codes, self.config.corruption, draws)

    # Measuring

    def sizes(self, batch: CodeWindow) -> dict[str, int]:
        return {"codes": batch.codes.shape[:4].numel()}

    @torch.no_grad()
    def validate(self, model: nn.Module, path: Path, quick: bool = False) -> Validation:
        """Mean bits of held-out codes, given up to `CONTEXT_LATENTS` latent frames before them."""
        codes, stretches = self.codes, self.stretches
        accelerator = self.accelerator
        limit = accelerator.num_processes if quick else self.config.num_valid_clips
        stretches = stretches[:limit][accelerator.process_index :: accelerator.num_processes]
        sums: dict[str, Tensor] = {}
        for stretch in stretches:
            first = max(0, stretch.start - CONTEXT_LATENTS)
            grid = read_grid(codes, stretch.video, first, stretch.stop)[None]
            label = torch.tensor([self.windows.labels[stretch.video]])
            num_context = len(grid[0]) - (stretch.stop - stretch.start)
            measured = model.measure(
                grid.to(accelerator.device),
                num_context,
                self._condition(label.to(accelerator.device)),
            )
            count = grid[:, num_context:].shape[:4].numel()
            for name, value in measured.items():
                both = torch.tensor([value * count, count], dtype=torch.float64)
                sums[name] = sums.get(name, torch.zeros(2, dtype=torch.float64)) + both
        values = {}
        for name in model.measures:
            total = sums.get(name, torch.zeros(2, dtype=torch.float64)).float()
            total = accelerator.reduce(total.to(accelerator.device), reduction="sum")
            values[f"valid/{name}"] = float(total[0] / total[1])
        return Validation(values, {})

    def finish(self, model: nn.Module, folder: Path, quick: bool = False) -> dict[str, float | int]:
        if self.accelerator.is_main_process:
            model.save_pretrained(folder / "generator")
        return {}

    # State

    def describe(self) -> dict[str, Any]:
        return self.model.config.to_dict()

    def parse_description(self, saved: dict[str, Any]) -> dict[str, Any]:
        return GENERATORS[self.model.config.kind].config_class(**to_tuples(saved)).to_dict()

    # Dry run

    def validation_rounds(self) -> int:
        count = min(len(self.stretches), self.config.num_valid_clips)
        return -(-count // self.accelerator.num_processes)

    def plan(self, batch: CodeWindow) -> "GeneratorPlan":
        held_out = sum(stretch.stop - stretch.start for stretch in self.stretches)
        return GeneratorPlan(
            window=tuple(batch.codes.shape[1:4]),
            num_windows=len(self.windows),
            bits=self.model.code_space.bits,
            num_held_out=held_out,
        )


@dataclass(frozen=True, kw_only=True)
class GeneratorPlan(TaskPlan):
    """Data of a generator's training."""

    window: tuple[int, int, int]
    """Latent frames, rows and columns of an example."""
    num_windows: int
    """Windows that cover the training data once."""
    bits: float
    """Bits of a position if all codes were equally likely: where training starts."""
    num_held_out: int
    """Held-out latent frames."""

    def rows(self, num_steps: int, examples_per_step: int) -> list[tuple[str, str]]:
        epochs = num_steps * examples_per_step / self.num_windows
        size = " x ".join(map(str, self.window))
        return [
            ("window", f"{size} codes of {self.bits:.2f} bits"),
            ("data", f"{self.num_windows:,} windows, {self.num_held_out:,} latent frames held out"),
            ("step", f"{examples_per_step:,} windows; {epochs:.2f} epochs in total"),
        ]

    def warnings(self, num_steps: int, examples_per_step: int) -> list[str]:
        epochs = num_steps * examples_per_step / self.num_windows
        if epochs <= MANY_EPOCHS:
            return []
        return [
            f"{epochs:.0f} epochs of the same codes: the generator may learn them by heart; "
            "tokenize with --views flip,shift:4, use dropout, or train less"
        ]


MANY_EPOCHS = 50

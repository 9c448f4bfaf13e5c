"""Options of a masked generator."""

from dataclasses import dataclass
from typing import Literal

from magvit2_pytorch.generators.generator import GeneratorConfig
from magvit2_pytorch.generators.mask_schedule import FillOrder, MaskSchedule
from magvit2_pytorch.generators.tasks import TASKS, CodeGeometry


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

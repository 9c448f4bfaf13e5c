"""Options of training a generator as a frozen dataclass."""

from dataclasses import dataclass

from magvit2_pytorch.training.loop_config import LoopConfig


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

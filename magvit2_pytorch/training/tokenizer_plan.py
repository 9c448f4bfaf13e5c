"""A tokenizer's part of the report of a dry run."""

from dataclasses import dataclass
from math import prod

from magvit2_pytorch.training.task import TaskPlan
from magvit2_pytorch.training.training_config import TrainingConfig

GridSize = tuple[int, int, int]
"""Frames, rows, columns."""


def _count_text(number: int | None) -> str:
    return "an unknown number of" if number is None else f"{number:,}"


def _size_text(size: GridSize) -> str:
    return " x ".join(map(str, size))


@dataclass(frozen=True, kw_only=True)
class TokenizerPlan(TaskPlan):
    """Data and tokens of a training."""

    config: TrainingConfig
    clip: GridSize
    """Size of the clips in the first batch."""
    latent_grid: GridSize
    num_codebooks: int
    codebook_size: int | None
    bits_per_pixel: float | None
    """Of such a clip with fixed-length codes. None for continuous latents, like `codebook_size`."""
    num_clips: int | None
    """None if it is not known, as the next two."""
    num_images: int | None
    """Training images in addition to the clips."""
    num_valid_clips: int | None
    """Held-out clips and images."""
    num_skipped_files: int
    """Files found to be unusable so far."""

    @property
    def tokens_per_clip(self) -> int:
        """Codes of a clip over all codebooks, or positions of continuous latents."""
        return prod(self.latent_grid) * self.num_codebooks

    def num_epochs(self, num_steps: int, examples_per_step: int) -> float | None:
        """Times that each clip is used; None if unknown."""
        share = 1.0 if self.num_images == 0 else 1 - self.config.image_frac
        if not self.num_clips:
            return None
        return num_steps * examples_per_step * share / self.num_clips

    def rows(self, num_steps: int, examples_per_step: int) -> list[tuple[str, str]]:
        tokens = f"{self.tokens_per_clip:,} tokens"
        if self.bits_per_pixel is None:
            tokens = f"{self.tokens_per_clip:,} latents"
        else:
            tokens += f", {self.bits_per_pixel:.4f} bits per pixel"
        images = "" if self.num_images == 0 else f" and {_count_text(self.num_images)} images"
        epochs = self.num_epochs(num_steps, examples_per_step)
        epochs_text = "" if epochs is None else f"; {epochs:.2f} epochs in total"
        return [
            ("clip", f"{_size_text(self.clip)} to {_size_text(self.latent_grid)}: {tokens}"),
            ("data", f"{_count_text(self.num_clips)} clips{images} to train on, "
             f"{_count_text(self.num_valid_clips)} held out, "
             f"{self.num_skipped_files:,} files skipped so far"),
            ("step", f"{examples_per_step:,} clips{epochs_text}"),
        ]  # fmt: skip

    def warnings(self, num_steps: int, examples_per_step: int) -> list[str]:
        config, messages = self.config, []
        names = ("frame", "video", "multiscale")
        if any(getattr(config, f"{name}_adversarial_weight") for name in names):
            effects = {
                "discriminator_start_step": "discriminators never learn",
                "adversarial_start_step": "the tokenizer never has an adversarial loss",
            }
            messages += [
                f"{effect}: {name} is {getattr(config, name)} and the run ends at step "
                f"{config.num_train_steps}"
                for name, effect in effects.items()
                if getattr(config, name) >= config.num_train_steps
            ]
        positions = num_steps * examples_per_step * prod(self.latent_grid)
        if self.codebook_size and self.codebook_size > positions:
            messages.append(
                f"the whole run has {positions:,} tokens, fewer than the {self.codebook_size:,} "
                "codes of a codebook: most codes will never be used"
            )
        return messages

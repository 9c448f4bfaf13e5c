"""Plan of a training: memory, time and disk usage."""

from dataclasses import dataclass
from math import prod

from magvit2_pytorch.training.training_config import TrainingConfig

GridSize = tuple[int, int, int]
"""Frames, rows, columns."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Estimated requirements of a training; `str(plan)` is the report of `--dry_run`.

    Sizes are in bytes, times in seconds.
    """

    config: TrainingConfig
    device: str
    num_processes: int

    parameters: dict[str, int]
    """Parameters of the tokenizer, each discriminator and the perceptual network."""
    held_memory: dict[str, int]
    """Memory in use throughout, on each process: weights, gradients, moments, averages."""
    peak_memory: int
    """Peak memory of two steps, a validation and a checkpoint: tensors on the fullest GPU, or,
    without a GPU, the whole process since its start."""
    total_memory: int
    """Memory of the GPU or the machine."""

    clip: GridSize
    """Size of the clips in the first batch."""
    latent_grid: GridSize
    num_codebooks: int
    codebook_size: int | None
    bits_per_pixel: float | None
    """Of such a clip with fixed-length codes. None for continuous latents, like `codebook_size`."""

    num_clips: int
    num_images: int
    """Training images in addition to the clips."""
    num_valid_clips: int
    """Held-out clips and images."""
    num_skipped_files: int
    """Files found to be unusable so far."""

    steps_per_s: float
    """Optimizer steps per second with discriminators, without gradient penalty and logging."""
    data_wait: float
    """Fraction of a step spent waiting for data."""
    num_skipped_steps: int
    """Steps of the dry run whose loss or gradients were not finite."""

    num_steps: int
    """Remaining steps, or as many as `max_duration_s` allows."""
    duration_s: float
    """Duration of these steps, validations and checkpoints."""
    num_validations: int
    checkpoint_bytes: int
    disk_bytes: int
    """Maximum size of the checkpoints and results folders together."""
    free_bytes: int
    """Free space on the disk of the checkpoints."""

    @property
    def tokens_per_clip(self) -> int:
        """Codes of a clip over all codebooks, or positions of continuous latents."""
        return prod(self.latent_grid) * self.num_codebooks

    @property
    def clips_per_step(self) -> int:
        config = self.config
        return config.batch_size * config.grad_accum_every * self.num_processes

    @property
    def num_epochs(self) -> float:
        """Number of times that each clip is used."""
        share = 1 - self.config.image_frac if self.num_images else 1.0
        return self.num_steps * self.clips_per_step * share / self.num_clips

    def warnings(self) -> list[str]:
        """Possible problems, one sentence each."""
        config, messages = self.config, []
        if self.num_skipped_steps and config.precision != "fp16":
            messages.append(
                f"{self.num_skipped_steps} steps of the dry run had losses or gradients that are "
                "not finite: check the data, or lower learning_rate"
            )
        if self.disk_bytes > self.free_bytes:
            messages.append(
                f"{_size(self.disk_bytes)} do not fit on a disk with {_size(self.free_bytes)} "
                "free: lower keep_checkpoints, or choose another checkpoints_folder"
            )
        if self.peak_memory > 0.9 * self.total_memory:
            messages.append(
                f"{_size(self.peak_memory)} of {_size(self.total_memory)} memory were in use: "
                "lower batch_size and raise grad_accum_every"
            )
        if self.data_wait > 0.5:
            messages.append(
                f"{self.data_wait:.0%} of a step was spent waiting for data: raise num_workers, or "
                "set cache_dir"
            )
        if config.warmup_steps > config.num_train_steps // 10:
            messages.append(
                f"warm-up takes {config.num_train_steps // 10} steps instead of "
                f"{config.warmup_steps}: at most a tenth of the run"
            )
        messages += self._late_discriminators()
        positions = self.num_steps * self.clips_per_step * prod(self.latent_grid)
        if self.codebook_size and self.codebook_size > positions:
            messages.append(
                f"the whole run has {positions:,} tokens, fewer than the {self.codebook_size:,} "
                "codes of a codebook: most codes will never be used"
            )
        return messages

    def _late_discriminators(self) -> list[str]:
        if not any(name.endswith(" discriminator") for name in self.parameters):
            return []
        config = self.config
        starts = {
            "discriminator_start_step": "discriminators never learn",
            "adversarial_start_step": "the tokenizer never has an adversarial loss",
        }
        return [
            f"{effect}: {name} is {getattr(config, name)} and the run ends at step "
            f"{config.num_train_steps}"
            for name, effect in starts.items()
            if getattr(config, name) >= config.num_train_steps
        ]

    def __str__(self) -> str:
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        lines = [self._title(), *(f"  {name:<{width}}  {text}" for name, text in rows)]
        return "\n".join([*lines, *(f"  ! {warning}" for warning in self.warnings())])

    def _title(self) -> str:
        processes = f"{self.num_processes} process{'es' * (self.num_processes > 1)}"
        precision = self.config.precision
        return f"Plan of {self.num_steps:,} steps on {self.device}, {processes}, {precision}"

    def _rows(self) -> list[tuple[str, str]]:
        held = ", ".join(f"{name} {_size(size)}" for name, size in self.held_memory.items())
        tokens = f"{self.tokens_per_clip:,} tokens"
        if self.bits_per_pixel is None:
            tokens = f"{self.tokens_per_clip:,} latents"
        else:
            tokens += f", {self.bits_per_pixel:.4f} bits per pixel"
        images = f" and {self.num_images:,} images" if self.num_images else ""
        steps = self.steps_per_s
        limit = self.config.max_duration_s
        scope = "all steps" if limit is None else f"at most {_duration(limit)}"
        return [
            *((name, f"{number:,} parameters") for name, number in self.parameters.items()),
            ("memory", f"{_size(self.peak_memory)} of {_size(self.total_memory)} at the peak"),
            ("", f"in use throughout: {held}"),
            ("clip", f"{_shape(self.clip)} to {_shape(self.latent_grid)}: {tokens}"),
            ("data", f"{self.num_clips:,} clips{images} to train on, {self.num_valid_clips:,} "
             f"held out, {self.num_skipped_files:,} files skipped so far"),
            ("step", f"{self.clips_per_step:,} clips; {self.num_epochs:.2f} epochs in total"),
            ("speed", f"{steps:.3g} steps/s, {steps * self.clips_per_step:.3g} clips/s; "
             f"{self.data_wait:.0%} of the time waiting for data"),
            ("time", f"{_duration(self.duration_s)} for {scope}, with {self.num_validations:,} "
             "validations and checkpoints"),
            ("disk", f"{_size(self.checkpoint_bytes)} per checkpoint, "
             f"{_size(self.disk_bytes)} in total; {_size(self.free_bytes)} free"),
        ]  # fmt: skip


def _shape(grid: GridSize) -> str:
    return " x ".join(map(str, grid))


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
    shown = [f"{number} {unit}" for number, unit in parts if number]
    return " ".join(shown[:2]) or "0 s"

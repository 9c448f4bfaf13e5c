"""What a training will take, as two steps of it have shown."""

from dataclasses import dataclass
from math import prod

from magvit2_pytorch.training.config import TrainingConfig

Grid = tuple[int, int, int]
"""Frames, rows, columns."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training before it is begun; `str` of it is the report that `--dry_run` prints.

    Sizes in bytes, times in seconds.
    """

    config: TrainingConfig
    device: str
    num_processes: int

    parameters: dict[str, int]
    """Of the tokenizer, each discriminator and the perceptual network."""
    held_memory: dict[str, int]
    """What is there all the time, on each process: weights, gradients, moments, averages."""
    peak_memory: int
    """The most that was held at once in two steps, a validation and a checkpoint: tensors of the
    fullest GPU, else the whole process, whatever it did before included."""
    total_memory: int
    """Of the GPU or the machine."""

    clip: Grid
    """Of what the first batch held."""
    latent_grid: Grid
    num_codebooks: int
    codebook_size: int | None
    bits_per_pixel: float | None
    """Of such a clip at fixed-length codes; None with continuous latents, as above."""

    num_clips: int
    num_images: int
    """Beside the clips."""
    num_valid_clips: int
    """Held out, images included."""
    num_skipped_files: int
    """Found unusable so far."""

    steps_per_s: float
    """Of an optimizer step with discriminators, no gradient penalty and no logging."""
    data_wait: float
    """Share of it that waited for data."""
    num_skipped_steps: int
    """Of the steps tried, those whose loss or gradients were not finite."""

    num_steps: int
    """That are left, or as many as `max_duration_s` leaves time for."""
    duration_s: float
    """For them, with validations and checkpoints."""
    num_validations: int
    checkpoint_bytes: int
    disk_bytes: int
    """Of all that will lie in checkpoints and results folder at once."""
    free_bytes: int
    """On the disk of the checkpoints."""

    @property
    def tokens_per_clip(self) -> int:
        """Codes of a clip, of all codebooks; positions where latents are continuous."""
        return prod(self.latent_grid) * self.num_codebooks

    @property
    def clips_per_step(self) -> int:
        config = self.config
        return config.batch_size * config.grad_accum_every * self.num_processes

    @property
    def num_epochs(self) -> float:
        """How often each clip is seen."""
        share = 1 - self.config.image_frac if self.num_images else 1.0
        return self.num_steps * self.clips_per_step * share / self.num_clips

    def warnings(self) -> list[str]:
        """What looks wrong, one sentence each."""
        config, found = self.config, []
        if self.num_skipped_steps and config.precision != "fp16":
            found.append(
                f"{self.num_skipped_steps} of the steps tried had losses or gradients that are not "
                "finite: look at the data, or lower learning_rate"
            )
        if self.disk_bytes > self.free_bytes:
            found.append(
                f"{_size(self.disk_bytes)} will not fit on a disk with {_size(self.free_bytes)} "
                "free: lower keep_checkpoints, or give another checkpoints_folder"
            )
        if self.peak_memory > 0.9 * self.total_memory:
            found.append(
                f"{_size(self.peak_memory)} of {_size(self.total_memory)} memory were in use: "
                "lower batch_size and raise grad_accum_every"
            )
        if self.data_wait > 0.5:
            found.append(
                f"{self.data_wait:.0%} of a step waited for data: raise num_workers, or give a "
                "cache_dir"
            )
        if config.warmup_steps > config.num_train_steps // 10:
            found.append(
                f"warm-up takes {config.num_train_steps // 10} steps, not the "
                f"{config.warmup_steps} asked for: at most a tenth of the run"
            )
        found += self._late_discriminators()
        positions = self.num_steps * self.clips_per_step * prod(self.latent_grid)
        if self.codebook_size and self.codebook_size > positions:
            found.append(
                f"the whole run sees {positions:,} tokens, fewer than the {self.codebook_size:,} "
                "codes of a codebook: most of them will never be used"
            )
        return found

    def _late_discriminators(self) -> list[str]:
        if not any(name.endswith(" discriminator") for name in self.parameters):
            return []
        config = self.config
        starts = {
            "discriminator_start_step": "discriminators never learn",
            "adversarial_start_step": "the tokenizer never feels its discriminators",
        }
        return [
            f"{what}: {name} is {getattr(config, name)} and the run ends at step "
            f"{config.num_train_steps}"
            for name, what in starts.items()
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
        until = "all steps" if limit is None else f"at most {_time(limit)}"
        return [
            *((name, f"{number:,} parameters") for name, number in self.parameters.items()),
            ("memory", f"{_size(self.peak_memory)} of {_size(self.total_memory)} at the peak"),
            ("", f"held throughout: {held}"),
            ("a clip", f"{_grid(self.clip)} to {_grid(self.latent_grid)}: {tokens}"),
            ("data", f"{self.num_clips:,} clips{images} to train on, {self.num_valid_clips:,} "
             f"held out, {self.num_skipped_files:,} files skipped so far"),
            ("a step", f"{self.clips_per_step:,} clips; {self.num_epochs:.2f} epochs in all"),
            ("speed", f"{steps:.3g} steps/s, {steps * self.clips_per_step:.3g} clips/s; "
             f"{self.data_wait:.0%} of it waiting for data"),
            ("time", f"{_time(self.duration_s)} for {until}, with {self.num_validations:,} "
             "validations and checkpoints"),
            ("disk", f"{_size(self.checkpoint_bytes)} a checkpoint, {_size(self.disk_bytes)} in "
             f"all; {_size(self.free_bytes)} free"),
        ]  # fmt: skip


def _grid(grid: Grid) -> str:
    return " x ".join(map(str, grid))


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
    shown = [f"{number} {unit}" for number, unit in parts if number]
    return " ".join(shown[:2]) or "0 s"

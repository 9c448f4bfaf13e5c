"""Plan of a training: memory, time and disk usage."""

from dataclasses import dataclass

from magvit2_pytorch.training.loop_config import LoopConfig
from magvit2_pytorch.training.task import TaskPlan


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Requirements of a training, in bytes and seconds; `str` is a report."""

    config: LoopConfig
    task: TaskPlan
    """Lines and warnings of the task, such as tokens in a clip."""
    device: str
    num_processes: int
    examples_per_step: int
    """Over all passes and processes."""

    parameters: dict[str, int]
    """Parameters of each trained module and each frozen network."""
    held_memory: dict[str, int]
    """Memory in use throughout, on each process: weights, gradients, moments, averages."""
    peak_memory: int
    """Peak memory of two steps, a validation and a checkpoint: tensors on the fullest GPU, or,
    without a GPU, the whole process since its start."""
    total_memory: int
    """Memory of the GPU or the machine."""

    steps_per_s: float
    """Optimizer steps per second with all modules, without rare losses and logging."""
    data_wait: float
    """Fraction of a step spent waiting for data."""
    num_skipped_steps: int
    """Steps of the dry run whose loss or gradients were not finite."""
    num_steps: int
    """Steps that remain, in `max_duration_s` if that is shorter."""
    duration_s: float
    num_validations: int
    checkpoint_bytes: int
    disk_bytes: int
    """Maximum size of the checkpoints and results folders together."""
    free_bytes: int
    """Free space on the disk of the checkpoints."""

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
        return messages + self.task.warnings

    def __str__(self) -> str:
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        processes = f"{self.num_processes} process{'es' * (self.num_processes > 1)}"
        lines = [
            f"Plan of {self.num_steps:,} steps on {self.device}, {processes}, "
            f"{self.config.precision}",
            *(f"  {name:<{width}}  {text}" for name, text in rows),
            *(f"  ! {warning}" for warning in self.warnings()),
        ]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, str]]:
        held = ", ".join(f"{name} {_size(size)}" for name, size in self.held_memory.items())
        steps, examples = self.steps_per_s, self.examples_per_step
        limit = self.config.max_duration_s
        scope = "all steps" if limit is None else f"at most {_duration(limit)}"
        return [
            *((name, f"{number:,} parameters") for name, number in self.parameters.items()),
            ("memory", f"{_size(self.peak_memory)} of {_size(self.total_memory)} at the peak"),
            ("", f"in use throughout: {held}"),
            *self.task.rows,
            ("speed", f"{steps:.3g} steps/s, {steps * examples:.3g} examples/s; "
             f"{self.data_wait:.0%} of the time waiting for data"),
            ("time", f"{_duration(self.duration_s)} for {scope}, with {self.num_validations:,} "
             "validations and checkpoints"),
            ("disk", f"{_size(self.checkpoint_bytes)} per checkpoint, "
             f"{_size(self.disk_bytes)} in total; {_size(self.free_bytes)} free"),
        ]  # fmt: skip


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

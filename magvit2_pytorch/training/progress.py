"""Progress bar of training: loss, PSNR, speed and time left."""

from typing import Any

from tqdm import tqdm

from magvit2_pytorch.training.config import TrainingConfig


class Progress:
    """Progress bar over steps, or over seconds if `max_duration_s` is set."""

    def __init__(self, config: TrainingConfig, step: int, main_process: bool):
        self.by_time = config.max_duration_s is not None
        total = round(config.max_duration_s) if self.by_time else config.num_train_steps
        self.bar = tqdm(
            total=total,
            initial=0 if self.by_time else step,
            unit="s" if self.by_time else "step",
            disable=None if config.progress_bar and main_process else True,
            dynamic_ncols=True,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def update(self, step: int, elapsed_s: float) -> None:
        done = min(elapsed_s, self.bar.total) if self.by_time else step
        self.bar.n = round(done)
        self.bar.refresh() if self.by_time else self.bar.update(0)

    def show(self, values: dict[str, float | int]) -> None:
        """Shows values of the last line of the log."""
        self.bar.set_postfix(
            loss=f"{values['loss']:.4f}",
            psnr=f"{values['psnr']:.2f}",
            steps_per_s=f"{values['steps_per_s']:.2f}",
        )

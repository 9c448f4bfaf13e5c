"""Learning rate as a pure function of training progress."""

import math
from typing import Literal


def lr_scale(
    step: int,
    num_steps: int,
    warmup_steps: int = 0,
    schedule: Literal["cosine", "linear", "constant"] = "cosine",
    final_fraction: float = 0.0,
    time_progress: float = 0.0,
) -> float:
    """Factor of the learning rate at optimizer step `step`, counted from 0.

    Warm-up grows linearly, reaches exactly 1 at its end and takes at most a tenth of the run, so
    that short runs reach the learning rate too. `time_progress` is the fraction of the time budget
    that is used up (0 without one): the decay follows steps or time, whichever is further on.
    """
    warmup_steps = min(warmup_steps, num_steps // 10)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    progress = min(1.0, max(progress, time_progress))
    if schedule == "constant":
        return 1.0
    decay = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return final_fraction + (1 - final_fraction) * decay

"""Optimizer steps of the tokenizer: learning rate, clipping, averaged weights."""

from accelerate import Accelerator
from ema_pytorch import EMA
from torch import nn
from torch.optim import Optimizer

from magvit2_pytorch.training.config import TrainingConfig
from magvit2_pytorch.training.not_finite import SkippedSteps
from magvit2_pytorch.training.schedule import lr_scale


class Optimization:
    """The tokenizer's optimizers, learning rate and averaged weights."""

    def __init__(
        self,
        module: nn.Module,
        optimizers: list[Optimizer],
        ema: EMA,
        config: TrainingConfig,
        accelerator: Accelerator,
    ):
        self.module, self.optimizers, self.ema = module, optimizers, ema
        self.config, self.accelerator = config, accelerator
        self.skips = SkippedSteps()

    def set_learning_rate(self, step: int, elapsed_s: float) -> float:
        """Sets the learning rate of a step and returns it.

        A group's `lr_factor` multiplies its rate, not the returned one.
        """
        config = self.config
        scale = lr_scale(
            step,
            config.num_train_steps,
            config.warmup_steps,
            config.schedule,
            config.final_lr_fraction,
            elapsed_s / config.max_duration_s if config.max_duration_s else 0.0,
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.get("lr_factor", 1.0) * config.learning_rate * scale
        return config.learning_rate * scale

    def apply_gradients(self) -> float:
        """Clips finite gradients and takes a step; returns the gradient norm.

        Gradients that are not finite skip the step, which then changes no weights, averages or
        moments, and is counted.
        """
        limit = self.config.max_grad_norm or float("inf")
        norm = float(self.accelerator.clip_grad_norm_(self.module.parameters(), limit))
        finite = norm < float("inf")  # false for NaN too
        if finite or self.accelerator.scaler is not None:
            # With a gradient scaler the optimizer itself skips, and the scaler needs the call.
            for optimizer in self.optimizers:
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if finite:
            self.ema.update()
        self.skips.count(finite)
        return norm

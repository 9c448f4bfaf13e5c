"""Options of the training loop, whatever it trains, and of one optimizer."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from magvit2_pytorch.config import Options, check_at_least_one
from magvit2_pytorch.layers.arithmetic import fast_precision

TrainingPrecision = Literal["fp32", "bf16", "fp16", "auto"]
OptimizerName = Literal["adamw", "adam", "muon"]
Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Optimizer of one module; fields as in `LoopConfig`."""

    num_train_steps: int
    learning_rate: float
    optimizer: OptimizerName = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    muon_adam_lr_factor: float = 0.15
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Schedule = "cosine"
    final_lr_fraction: float = 0.0
    max_grad_norm: float | None = None
    max_duration_s: float | None = None
    start_step: int = 0
    """First step at which the module is trained; its schedule begins there."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Options):
    """Options of a `Trainer`. Durations are in seconds."""

    owner = "the trainer"

    batch_size: int = 4
    """Examples in a forward pass, on each process."""
    num_train_steps: int = 100_000
    """Number of optimizer steps of the whole run."""
    grad_accum_every: int = 1
    """Forward passes per optimizer step. The result equals one pass over all their examples, except
    for losses that are not means over examples: LFQ's codebook entropy, feature matching and
    adaptive weights are computed for each pass separately."""
    learning_rate: float = 1e-4
    """Learning rate at the end of warm-up; MAGVIT-v2 uses 1e-4."""
    optimizer: OptimizerName = "adamw"
    """Optimizer; `muon` uses Muon for convolutions and matrices, and AdamW for the rest."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of Adam's first and second moments."""
    muon_adam_lr_factor: float = 0.15
    """With `muon`, the ratio of AdamW's learning rate to Muon's: 3e-3 to 2e-2 in the `small`
    recipe."""
    weight_decay: float = 0.0
    """Weight decay of convolutions and matrices; gains and biases have none."""
    warmup_steps: int = 500
    """Steps over which the learning rate grows linearly from 0; at most a tenth of all steps."""
    schedule: Schedule = "cosine"
    """Decay of the learning rate to `final_lr_fraction` of itself after warm-up."""
    final_lr_fraction: float = 0.0
    """Fraction of the learning rate that remains at the last step."""
    max_grad_norm: float | None = 1.0
    """Maximum gradient norm: larger gradients are scaled down to it; None does not clip."""
    max_duration_s: float | None = None
    """Stop after this many seconds. The learning rate then follows steps or time, whichever is
    further on."""
    ema_decay: float = 0.999
    """Decay of the averaged weights; it starts at 0 and grows as 1 - (1 + step)^(-2/3) up to
    this."""
    ema_update_every: int = 1
    """Steps between two updates of the averaged weights."""
    precision: TrainingPrecision = "fp32"
    """Precision of convolutions and matrix products; weights and quantizer are always fp32. "auto"
    becomes bf16 on GPUs and processors that compute in it, and fp32 on others."""
    check_arithmetic: bool = True
    """In half precision on a CPU, compare each layer's first output and gradients with float32, and
    stop before any weight changes if they differ; not with `compile`."""
    compile: bool = False
    """Compile the forward pass with torch.compile."""
    seed: int = 42
    """Seed for data order, crops and all training randomness."""
    num_workers: int = 0
    """Number of data worker processes; 0 decodes in the training process."""
    log_every_step: int = 10
    """Steps between two lines of the log."""
    validate_every_step: int = 500
    """Steps between two validations."""
    checkpoint_every_step: int = 1000
    """Steps between two checkpoints; the last step and each step with the best validation so far
    are also saved."""
    keep_checkpoints: int | None = 3
    """Number of newest checkpoints to keep in addition to the best one; None keeps all."""
    checkpoints_folder: str = "./checkpoints"
    """Folder for checkpoints."""
    results_folder: str = "./results"
    """Folder for the log, samples, curves and the trained model."""
    use_wandb_tracking: bool = False
    """Also log to wandb."""
    use_tensorboard_tracking: bool = False
    """Also log to TensorBoard, in the results folder."""
    progress_bar: bool = True
    """Show a progress bar on a terminal."""
    max_skipped_steps: int = 20
    """Stop after this many consecutive steps with losses or gradients that are not finite."""
    find_unused_parameters: bool = False
    """With several processes, search at each step for parameters without a gradient."""
    process_timeout_s: float = 1800.0
    """Seconds that a process waits for the others before it stops with an error."""

    positive: ClassVar[tuple[str, ...]] = (
        "batch_size", "num_train_steps", "grad_accum_every", "learning_rate", "log_every_step",
        "validate_every_step", "checkpoint_every_step", "max_skipped_steps", "process_timeout_s",
    )  # fmt: skip
    """Names of options that must be above 0."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        for name in self.positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        check_at_least_one(keep_checkpoints=self.keep_checkpoints)
        names = {"precision": TrainingPrecision, "schedule": Schedule, "optimizer": OptimizerName}
        for name, known in names.items():
            if getattr(self, name) not in get_args(known):
                *first, last = map(repr, get_args(known))
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}: use {', '.join(first)} or {last}"
                )
        if self.precision == "auto":
            object.__setattr__(self, "precision", fast_precision())
        if self.precision == "fp16" and self.optimizer == "muon":
            raise ValueError(f"{FP16_WITH_ONE_OPTIMIZER}: with muon use 'bf16' or 'fp32'")

    def optimizer_options(self) -> OptimizerOptions:
        """Options of the model's optimizer."""
        names = OptimizerOptions.__dataclass_fields__.keys() - {"start_step"}
        return OptimizerOptions(**{name: getattr(self, name) for name in names})


FP16_WITH_ONE_OPTIMIZER = "precision 'fp16' scales gradients for one optimizer only"

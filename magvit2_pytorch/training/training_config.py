"""Options of a training run as a frozen dataclass."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from magvit2_pytorch.losses.adversarial import ADVERSARIAL_LOSSES
from magvit2_pytorch.losses.reconstruction import RECONSTRUCTION_LOSSES
from magvit2_pytorch.losses.regularizers import GRADIENT_PENALTIES
from magvit2_pytorch.types import Precision


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Options of training a `VideoTokenizer`. Durations are in seconds, sizes in items."""

    batch_size: int = 4
    """Clips (or images) in a forward pass, on each process."""
    num_train_steps: int = 100_000
    """Number of optimizer steps of the whole run."""
    grad_accum_every: int = 1
    """Forward passes per optimizer step. The result equals one pass over all these clips, except
    for three losses that are not means over clips: LFQ's codebook entropy, feature matching and
    adaptive weights are computed for each pass separately."""

    learning_rate: float = 1e-4
    """Learning rate at the end of warm-up; MAGVIT-v2 uses 1e-4."""
    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
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
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay of the learning rate to `final_lr_fraction` of itself after warm-up."""
    final_lr_fraction: float = 0.0
    """Fraction of the learning rate that remains at the last step."""
    max_grad_norm: float | None = 1.0
    """Maximum gradient norm: larger gradients are scaled down to it; None does not clip."""
    max_duration_s: float | None = None
    """Stop after this many seconds. The learning rate then follows steps or time, whichever is
    further on."""

    reconstruction_loss: str = "mse"
    """Reconstruction loss: `mse`, `l1` or `charbonnier`."""
    reconstruction_loss_weight: float = 1.0
    """Weight of the reconstruction loss."""
    quantizer_loss_weight: float = 1.0
    """Factor of all quantizer losses, which also have their own weights."""

    perceptual_loss_weight: float = 0.0
    """Weight of the perceptual loss, a distance of network features; 0 loads no network."""
    perceptual_weights: str | None = None
    """Weights of the perceptual network: a local file (VGG16 or AlexNet, with or without LPIPS
    heads), or `torchvision:vgg16`, the only value that downloads them."""
    perceptual_num_frames: int = 4
    """Frames of each clip for the perceptual loss, drawn at random at every step."""

    adversarial_loss: str = "hinge"
    """Adversarial loss: `hinge`, `non_saturating` or `relativistic`."""
    frame_adversarial_weight: float = 0.0
    """Weight of the adversarial loss of the discriminator of single frames; 0 builds none."""
    video_adversarial_weight: float = 0.0
    """Weight of the adversarial loss of the discriminator of whole clips (MAGVIT-v2); 0 builds
    none."""
    multiscale_adversarial_weight: float = 0.0
    """Weight of the adversarial loss of the discriminator of short frame sequences at several
    strides; 0 builds none."""
    adaptive_adversarial_weight: bool = False
    """Scale adversarial losses relative to the reconstruction. In addition to its weight and ramp,
    each adversarial loss is multiplied by the gradient norm of reconstruction and perceptual loss
    at the last layer, divided by its own gradient norm there (VQGAN, arXiv 2012.09841, eq. 7). A
    discriminator of weight 0.1 then has a tenth of their gradient. Each discriminator has its own
    factor, so weights add up: two of weight 0.1 have up to a fifth. Feature matching has no factor.
    Factors are computed for each forward pass and process."""
    feature_matching_weight: float = 0.0
    """Weight of the distance between a discriminator's features of real and decoded clips, relative
    to the mean of the real features in a forward pass. It applies from `adversarial_start_step` on,
    without ramp or adaptive factor."""
    frame_discriminator: dict[str, Any] | None = None
    """Options of `FrameDiscriminator`."""
    video_discriminator: dict[str, Any] | None = None
    """Options of `VideoDiscriminator`."""
    multiscale_discriminator: dict[str, Any] | None = None
    """Options of `MultiScaleDiscriminator`."""
    discriminator_start_step: int = 0
    """First step at which discriminators run and learn."""
    adversarial_start_step: int = 0
    """First step at which the tokenizer has adversarial losses: later, so that discriminators learn
    first."""
    adversarial_ramp_steps: int = 0
    """Steps over which adversarial weights then grow linearly from 0."""
    discriminator_learning_rate: float = 1e-4
    """Learning rate of discriminators. It has the same schedule, over the steps from
    `discriminator_start_step` on, and never follows time."""
    discriminator_betas: tuple[float, float] = (0.0, 0.99)
    """Decay rates of the moments of the discriminators' Adam; MAGVIT-v2 has no momentum there."""
    discriminator_max_grad_norm: float | None = None
    """Maximum gradient norm of discriminators; None does not clip."""
    gradient_penalty: str = "r1"
    """Gradient penalty: `r1` (arXiv 1801.04406) or `one_centered` (arXiv 1704.00028)."""
    gradient_penalty_weight: float = 0.0
    """Weight of the penalty on a discriminator's gradient with respect to its input. The gradient
    is that of a sample's mean logit, so R1 of a frame discriminator with num_frames=n is 1/n of the
    mean R1 of single frames; n times the weight compensates for that."""
    gradient_penalty_every: int = 16
    """Steps between two penalties; each is multiplied by this to compensate for the steps
    without."""
    lecam_loss_weight: float = 0.0
    """Weight of LeCAM regularization of logits towards their running means (arXiv 2104.03310). The
    means include earlier steps only and are updated at the end of a step. In the first step there
    are none, and the loss is 0."""

    ema_decay: float = 0.999
    """Decay of the averaged weights; it starts at 0 and grows as 1 - (1 + step)^(-2/3) up to
    this."""
    ema_update_every: int = 1
    """Steps between two updates of the averaged weights."""

    precision: Precision = "fp32"
    """Precision of convolutions and matrix products; weights and quantizer are always fp32."""
    check_arithmetic: bool = True
    """In half precision on a CPU, compare each layer's first output and gradients with float32, and
    stop before any weight changes if they differ; not with `compile`."""
    compile: bool = False
    """Compile the forward pass with torch.compile."""
    checkpoint_activations: bool = False
    """Recompute residual layers in the backward pass instead of keeping their activations: a third
    more computation for a fraction of the memory."""
    seed: int = 42
    """Seed for data order, crops and all training randomness."""

    num_frames: int = 17
    """Frames in a clip: 1 + k * the tokenizer's time factor; other numbers are padded."""
    fps: float | None = None
    """Frame rate of clips in frames per second; None takes every `frame_stride`-th frame."""
    frame_stride: int = 1
    """Take every n-th frame of the file if `fps` is not given."""
    flip: bool = False
    """Mirror half of the clips left to right."""
    random_scale: tuple[float, float] | None = None
    """Range of a random factor, at least 1, by which frames are enlarged before they are cropped;
    (2, 2) trains on crops of half the short side."""
    num_workers: int = 0
    """Number of data worker processes; 0 decodes in the training process."""
    image_frac: float = 0.2
    """Fraction of forward passes on images, if the trainer has `image_folder` or `image_dataset` in
    addition to its clips."""
    image_batch_size: int | None = None
    """Images in such a forward pass, on each process; None: as many as a batch of clips has
    frames."""
    cache_dir: str | None = None
    """Folder in which decoded frames are cached, so that later epochs need not decode."""

    valid_frac: float = 0.05
    """Fraction of files held out for validation; at least one file."""
    num_valid_clips: int = 16
    """Maximum number of held-out clips in a validation."""
    num_latent_statistics_clips: int = 256
    """Maximum number of training clips on which the statistics of continuous latents are measured
    at the end, for `normalize_latents`; 0 measures none."""
    random_split_seed: int = 42
    """Seed of the train/validation split."""
    log_every_step: int = 10
    """Steps between two lines of the log."""
    validate_every_step: int = 500
    """Steps between two validations."""
    checkpoint_every_step: int = 1000
    """Steps between two checkpoints; the last step and each step with the best validation PSNR so
    far are also saved."""
    keep_checkpoints: int | None = 3
    """Number of newest checkpoints to keep in addition to the best one; None keeps all."""
    checkpoints_folder: str = "./checkpoints"
    """Folder for checkpoints."""
    results_folder: str = "./results"
    """Folder for the log, reconstructions, curves and the trained tokenizer."""
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

    def __post_init__(self):
        for name in ("betas", "random_scale", "discriminator_betas"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        positive = (
            "batch_size", "num_train_steps", "grad_accum_every", "learning_rate", "num_frames",
            "frame_stride", "log_every_step", "validate_every_step", "checkpoint_every_step",
            "perceptual_num_frames", "discriminator_learning_rate", "gradient_penalty_every",
            "max_skipped_steps", "process_timeout_s",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        if self.num_latent_statistics_clips < 0:
            raise ValueError(
                f"num_latent_statistics_clips is {self.num_latent_statistics_clips}: it must be 0 "
                "or above"
            )
        if not 0 < self.image_frac < 1:
            raise ValueError(f"image_frac is {self.image_frac}: it must lie between 0 and 1")
        if self.image_batch_size is not None and self.image_batch_size < 1:
            raise ValueError(f"image_batch_size is {self.image_batch_size}: it must be 1 or more")
        if self.keep_checkpoints is not None and self.keep_checkpoints < 1:
            raise ValueError(
                f"keep_checkpoints is {self.keep_checkpoints}: it must be 1 or more, or None"
            )
        if not 0 < self.valid_frac < 1:
            raise ValueError(f"valid_frac is {self.valid_frac}: it must lie between 0 and 1")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise ValueError(f"precision is {self.precision!r}: use 'fp32', 'bf16' or 'fp16'")
        if self.schedule not in ("cosine", "linear", "constant"):
            raise ValueError(f"schedule {self.schedule!r}: use 'cosine', 'linear' or 'constant'")
        if self.optimizer not in ("adamw", "adam", "muon"):
            raise ValueError(f"optimizer {self.optimizer!r}: use 'adamw', 'adam' or 'muon'")
        RECONSTRUCTION_LOSSES[self.reconstruction_loss]
        ADVERSARIAL_LOSSES[self.adversarial_loss]
        GRADIENT_PENALTIES[self.gradient_penalty]
        for name in (field.name for field in fields(self)):
            if name.endswith("_weight") and getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or above")
        adversarial = any(
            getattr(self, f"{name}_adversarial_weight") for name in ("frame", "video", "multiscale")
        )
        if self.precision == "fp16" and (adversarial or self.optimizer == "muon"):
            raise ValueError(
                "precision 'fp16' scales gradients for one optimizer only: with discriminators or "
                "muon use 'bf16' or 'fp32'"
            )
        if self.adversarial_start_step < self.discriminator_start_step:
            raise ValueError(
                f"adversarial_start_step is {self.adversarial_start_step}, before "
                f"discriminator_start_step {self.discriminator_start_step}: an adversarial loss "
                "needs a discriminator that runs"
            )

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain JSON values."""
        return json.loads(json.dumps(asdict(self)))

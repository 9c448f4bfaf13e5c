"""Everything about a training run that is not the model: frozen, strict, plain JSON."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from magvit2_pytorch.losses import (
    ADVERSARIAL_LOSSES,
    GRADIENT_PENALTIES,
    RECONSTRUCTION_LOSSES,
)
from magvit2_pytorch.types import Precision


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a `VideoTokenizer` is trained. Lengths of time in seconds, sizes in items."""

    batch_size: int = 4
    """Clips (or images) to a forward pass, on each process."""
    num_train_steps: int = 100_000
    """Optimizer steps of the whole run."""
    grad_accum_every: int = 1
    """Forward passes to an optimizer step. The step is that of one pass over as many clips at once,
    but for three things that are not means over clips: LFQ's entropy of the codebook, feature
    matching and adaptive weights are computed for each pass by itself."""

    learning_rate: float = 1e-4
    """Reached at the end of warm-up; MAGVIT-v2 trains at 1e-4."""
    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
    """`muon` takes orthogonalised steps on convolutions and matrices, AdamW's on the rest."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of Adam's first and second moment."""
    muon_adam_lr_factor: float = 0.15
    """With `muon`, AdamW's learning rate over Muon's: 3e-3 to 2e-2 in the `small` recipe."""
    weight_decay: float = 0.0
    """On weights of convolutions and matrices only, never on gains and biases."""
    warmup_steps: int = 500
    """Steps from 0 to the learning rate, growing linearly; at most a tenth of all steps."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls to `final_lr_fraction` of itself after warm-up."""
    final_lr_fraction: float = 0.0
    """What is left of the learning rate at the last step."""
    max_grad_norm: float | None = 1.0
    """Gradients longer than this are scaled down to it."""
    max_duration_s: float | None = None
    """Stop after this long. The schedule then follows the clock where it is ahead of the steps."""

    reconstruction_loss: str = "mse"
    """`mse`, `l1` or `charbonnier`."""
    reconstruction_loss_weight: float = 1.0
    quantizer_loss_weight: float = 1.0
    """On the quantizer's own losses, which carry their own weights besides."""

    perceptual_loss_weight: float = 0.0
    """Weight of the distance in the features of a network that knows pictures; 0 loads none."""
    perceptual_weights: str | None = None
    """Where its weights are: a local file (VGG16 or AlexNet, with LPIPS heads or without), or
    `torchvision:vgg16` to download them. Nothing is downloaded without that word."""
    perceptual_num_frames: int = 4
    """Frames of each clip it compares, drawn anew at every step."""

    adversarial_loss: str = "hinge"
    """`hinge`, `non_saturating` or `relativistic`."""
    frame_adversarial_weight: float = 0.0
    """Weight of what the discriminator of single frames says; at 0 there is none."""
    video_adversarial_weight: float = 0.0
    """Weight of the discriminator of whole clips, MAGVIT-v2's."""
    multiscale_adversarial_weight: float = 0.0
    """Weight of the discriminators of short runs of frames at several strides."""
    adaptive_adversarial_weight: bool = False
    """Measure these weights against the reconstruction. Each adversarial loss, besides its weight
    and ramp, is multiplied by the length of the gradient of reconstruction and perceptual loss at
    the last layer over that of its own gradient there (VQGAN, arXiv 2012.09841, eq. 7). So a
    discriminator of weight 0.1 pulls a tenth as strongly as they do. Each discriminator has its own
    factor, so weights add: two of weight 0.1 pull up to a fifth as strongly. Feature matching has
    no factor. A factor is that of one forward pass in one process."""
    feature_matching_weight: float = 0.0
    """Weight of the distance between a discriminator's features of real and decoded clips, relative
    to the mean of the real ones in a forward pass. It holds in full from `adversarial_start_step`
    on, without ramp or adaptive factor."""
    frame_discriminator: dict[str, Any] | None = None
    """Options of `FrameDiscriminator`."""
    video_discriminator: dict[str, Any] | None = None
    """Options of `VideoDiscriminator`."""
    multiscale_discriminator: dict[str, Any] | None = None
    """Options of `MultiScaleDiscriminator`."""
    discriminator_start_step: int = 0
    """The step from which discriminators learn; they do not run before."""
    adversarial_start_step: int = 0
    """The step from which the tokenizer feels them: later, so that it meets one that can judge."""
    adversarial_ramp_steps: int = 0
    """Steps over which their weight then grows from 0, linearly."""
    discriminator_learning_rate: float = 1e-4
    """Their learning rate, on the same schedule of steps (never of the clock), counted from their
    own start."""
    discriminator_betas: tuple[float, float] = (0.0, 0.99)
    """Decay of their Adam's moments; MAGVIT-v2 has no momentum there."""
    discriminator_max_grad_norm: float | None = None
    """Their gradients longer than this are scaled down to it."""
    gradient_penalty: str = "r1"
    """`r1` (arXiv 1801.04406) or `one_centered` (arXiv 1704.00028)."""
    gradient_penalty_weight: float = 0.0
    """Weight of the penalty on a discriminator's gradient with respect to what it sees. It is the
    gradient of a sample's mean logit, so R1 of a frame discriminator with num_frames=n is 1/n of
    the mean R1 of its single frames; n times the weight makes up for that."""
    gradient_penalty_every: int = 16
    """Steps between two penalties, which are multiplied by this to make up for the others."""
    lecam_loss_weight: float = 0.0
    """Weight of the pull of logits towards their running means (LeCAM, arXiv 2104.03310). The means
    are those of earlier steps, and take in all logits of a step at its end. In the first step there
    are none, and this loss is 0."""

    ema_decay: float = 0.999
    """Decay of the averaged weights, approached from 0 as 1 - (1 + step)^(-2/3)."""
    ema_update_every: int = 1
    """Steps between two updates of the averaged weights."""

    precision: Precision = "fp32"
    """bf16 and fp16 run convolutions and matrices in it; weights and quantizer stay fp32."""
    check_arithmetic: bool = True
    """In half precision on a CPU, compare each layer's first value and gradients with float32 and
    stop before a weight changes where they differ; not with `compile`."""
    compile: bool = False
    """Compile the forward pass with torch.compile."""
    checkpoint_activations: bool = False
    """Keep nothing of residual layers for the backward pass, which computes them again: a third
    more computation for a fraction of the memory."""
    seed: int = 42
    """Of the data's order and crops and of everything drawn while training."""

    num_frames: int = 17
    """Frames to a clip: 1 + k * the tokenizer's time factor, or they are padded."""
    fps: float | None = None
    """Frames per second that clips are sampled at; None takes every `frame_stride`-th frame."""
    frame_stride: int = 1
    """Frames of the file to a frame of the clip, where no `fps` is given."""
    flip: bool = False
    """Mirror half of the clips left to right."""
    random_scale: tuple[float, float] | None = None
    """Frames are first made larger by a random factor from this range (from 1 on), so that a clip
    shows a part of them; (2, 2) trains on crops of half the short side."""
    num_workers: int = 0
    """Processes that decode; 0 decodes in the training process."""
    image_frac: float = 0.2
    """Share of the forward passes that see images, where `image_folder` or `image_dataset` gives
    the trainer some beside its clips."""
    image_batch_size: int | None = None
    """Images to such a pass, on each process; None: as many as a batch of clips has frames."""
    cache_dir: str | None = None
    """Folder for decoded frames, so that later epochs decode nothing."""

    valid_frac: float = 0.05
    """Share of the files held out for validation, at least one of them."""
    num_valid_clips: int = 16
    """Held-out clips that a validation measures, at most."""
    num_latent_statistics_clips: int = 256
    """Training clips that continuous latents are measured on at the end, at most, for
    `normalize_latents`; 0 measures nothing."""
    random_split_seed: int = 42
    """Of the choice of the files held out."""
    log_every_step: int = 10
    """Steps between two lines of the log."""
    validate_every_step: int = 500
    """Steps between two validations."""
    checkpoint_every_step: int = 1000
    """Steps between two checkpoints; the last step is saved in any case, and so is each
    validation with the best PSNR so far."""
    keep_checkpoints: int | None = 3
    """The newest checkpoints that are kept, besides the best one; None keeps all."""
    checkpoints_folder: str = "./checkpoints"
    """Where checkpoints go."""
    results_folder: str = "./results"
    """Where the log, reconstructions and curves go."""
    use_wandb_tracking: bool = False
    """Log to wandb too."""
    use_tensorboard_tracking: bool = False
    """Log to TensorBoard too, within the results folder."""
    progress_bar: bool = True
    """Show one on a terminal."""
    max_skipped_steps: int = 20
    """Steps in a row with numbers that are not finite after which training gives up."""
    find_unused_parameters: bool = False
    """With several processes, look at each step for parameters that no gradient reaches."""
    process_timeout_s: float = 1800.0
    """How long a process waits for the others before it gives them up for lost."""

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
                f"discriminator_start_step {self.discriminator_start_step}: the tokenizer cannot "
                "feel a discriminator that does not run"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return json.loads(json.dumps(asdict(self)))

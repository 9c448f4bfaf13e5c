"""Options of training a `VideoTokenizer` as a frozen dataclass."""

from dataclasses import dataclass, fields, replace
from typing import Any

from magvit2_pytorch.config import check_at_least_one
from magvit2_pytorch.losses.adversarial import ADVERSARIAL_LOSSES, GRADIENT_PENALTIES
from magvit2_pytorch.losses.reconstruction import RECONSTRUCTION_LOSSES
from magvit2_pytorch.training.loop_config import (
    FP16_WITH_ONE_OPTIMIZER,
    LoopConfig,
    OptimizerOptions,
)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(LoopConfig):
    """Options of training a `VideoTokenizer`: losses, data, and those of the loop."""

    reconstruction_loss: str = "mse"
    """Reconstruction loss: `mse`, `l1` or `charbonnier`."""
    reconstruction_loss_weight: float = 1.0
    """Weight of the reconstruction loss."""
    temporal_loss_weight: float = 0.0
    """Weight of the same loss of the changes from frame to frame: with discriminators it keeps
    pictures from flickering."""
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
    prior_loss_weight: float = 0.0
    """Weight of the negative log likelihood of the codes, in nats, by a small autoregressive model
    that trains with the tokenizer, so that generators predict its codes better; LARP (arXiv
    2410.21264) has 0.06. 0 builds none."""
    prior_learning_rate: float = 2e-3
    """Learning rate of that model, with AdamW and the tokenizer's schedule."""
    prior: dict[str, Any] | None = None
    """Options of that model, a `LatentPrior`: `dim`, `depth` and `heads`."""
    freeze_encoder: bool = False
    """Train the decoder alone. Encoder and quantizer stay as they are, and so do all codes: stored
    ones decode with the new decoder."""
    checkpoint_activations: bool = False
    """Recompute residual layers in the backward pass instead of keeping their activations: a third
    more computation for a fraction of the memory."""
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
    color_jitter_frac: float = 0.0
    """Fraction of training clips in other colours: with random contrast, saturation and brightness,
    and with red, green and blue in a random order."""
    tubelet: tuple[int, int, int] | str | None = None
    """Train on random parts of clips of this many frames, rows and columns, such as 5x64x64: one
    for each clip, for tokenizer and discriminators. Validation is on whole clips. The delays
    `discriminator_start_step` and `adversarial_start_step` apply as to clips."""
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
    overfit_clips: int | None = None
    """Train on the first so many clips alone, each always cropped in the same way, and validate on
    them, not on held-out clips: a check that this model and these options can learn. None trains
    on all."""
    num_latent_statistics_clips: int = 256
    """Maximum number of training clips on which the statistics of continuous latents are measured
    at the end, for `normalize_latents`; 0 measures none."""
    random_split_seed: int = 42
    """Seed of the train/validation split."""

    positive = (
        *LoopConfig.positive, "num_frames", "frame_stride", "perceptual_num_frames",
        "num_valid_clips", "discriminator_learning_rate", "gradient_penalty_every",
        "prior_learning_rate",
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        if self.num_latent_statistics_clips < 0:
            raise ValueError(
                f"num_latent_statistics_clips is {self.num_latent_statistics_clips}: it must be 0 "
                "or above"
            )
        if isinstance(self.tubelet, str):
            sides = self.tubelet.lower().split("x")
            if not all(side.strip().isdecimal() for side in sides):
                raise ValueError(f"tubelet is {self.tubelet!r}: give FRAMESxHEIGHTxWIDTH: 5x64x64")
            object.__setattr__(self, "tubelet", tuple(map(int, sides)))
        if not 0 < self.image_frac < 1:
            raise ValueError(f"image_frac is {self.image_frac}: it must lie between 0 and 1")
        check_at_least_one(image_batch_size=self.image_batch_size, overfit_clips=self.overfit_clips)
        if not 0 < self.valid_frac < 1:
            raise ValueError(f"valid_frac is {self.valid_frac}: it must lie between 0 and 1")
        RECONSTRUCTION_LOSSES[self.reconstruction_loss]
        ADVERSARIAL_LOSSES[self.adversarial_loss]
        GRADIENT_PENALTIES[self.gradient_penalty]
        for name in (field.name for field in fields(self)):
            if name.endswith("_weight") and getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or above")
        adversarial = any(
            getattr(self, f"{name}_adversarial_weight") for name in ("frame", "video", "multiscale")
        )
        if self.precision == "fp16" and (adversarial or self.prior_loss_weight):
            raise ValueError(
                f"{FP16_WITH_ONE_OPTIMIZER}: with discriminators or a prior use 'bf16' or 'fp32'"
            )
        if self.freeze_encoder and self.prior_loss_weight:
            raise ValueError("freeze_encoder keeps the codes, which a prior loss is to change")
        if self.adversarial_start_step < self.discriminator_start_step:
            raise ValueError(
                f"adversarial_start_step is {self.adversarial_start_step}, before "
                f"discriminator_start_step {self.discriminator_start_step}: an adversarial loss "
                "needs a discriminator that runs"
            )

    def prior_optimizer_options(self) -> OptimizerOptions:
        """Options of the prior's optimizer."""
        options = self.optimizer_options()
        return replace(options, optimizer="adamw", learning_rate=self.prior_learning_rate)

    def discriminator_optimizer_options(self) -> OptimizerOptions:
        """Options of each discriminator's optimizer, which never follows time."""
        start = self.discriminator_start_step
        return replace(
            self.optimizer_options(),
            optimizer="adam",
            num_train_steps=max(self.num_train_steps - start, 1),
            learning_rate=self.discriminator_learning_rate,
            betas=self.discriminator_betas,
            weight_decay=0.0,
            max_grad_norm=self.discriminator_max_grad_norm,
            max_duration_s=None,
            start_step=start,
        )

"""From one forward pass of the tokenizer to the loss: named terms, each with its weight."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.discriminators import gather_frames, pick_frames
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.losses import RECONSTRUCTION_LOSSES, build_perceptual
from magvit2_pytorch.quantizers import Quantizer
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.config import TrainingConfig
from magvit2_pytorch.types import Codes, Latents, Precision, Video


class Reconstruction(NamedTuple):
    """All that one forward pass of the tokenizer gives to whoever computes a loss."""

    recon: Video
    latents: Latents
    codes: Codes | None
    quantizer_terms: dict[str, Tensor]


class Autoencoder(nn.Module):
    """The forward pass of training as one module, for wrappers that hook `forward`.

    Quantizer losses are computed here and not after, as the distributed mean of code use is a
    part of the forward pass.
    """

    def __init__(self, tokenizer: VideoTokenizer, precision: Precision = "fp32"):
        super().__init__()
        self.tokenizer = tokenizer
        self.precision = precision

    def forward(self, video: Video, cond: Float[Tensor, "b e"] | None = None) -> Reconstruction:
        with autocast(video.device, self.precision):
            latents = self.tokenizer.encode(video, cond)
            quantized, codes = self.tokenizer.quantize(latents)
            recon = self.tokenizer.decode(quantized, cond, num_frames=video.shape[2])
            terms = self.tokenizer.quantizer.loss_terms(latents)
        return Reconstruction(recon, latents, codes, terms)


class Loss(NamedTuple):
    """The scalar to minimise in two parts, and the named terms they are the weighted sums of."""

    picture: Float[Tensor, ""]
    """What depends on the reconstruction."""

    code: Float[Tensor, ""]
    """What depends on the latents: the quantizer's own losses."""

    terms: dict[str, Tensor]
    weights: dict[str, float]

    @property
    def total(self) -> Float[Tensor, ""]:
        return self.picture + self.code


class Objective:
    """Reconstruction, perceptual and quantizer losses. A term and its weight share one name.

    `perceptual` takes reconstruction and real clips and gives a scalar; it compares
    `perceptual_num_frames` frames of each clip, drawn by the generator of the step, and runs in
    `precision`; all else is float32.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        reconstruction_loss: str = "mse",
        reconstruction_loss_weight: float = 1.0,
        quantizer_loss_weight: float = 1.0,
        perceptual: nn.Module | None = None,
        perceptual_loss_weight: float = 0.0,
        perceptual_num_frames: int = 4,
        precision: Precision = "fp32",
    ):
        self.quantizer = quantizer
        self.reconstruction_loss = RECONSTRUCTION_LOSSES[reconstruction_loss]
        self.reconstruction_loss_weight = reconstruction_loss_weight
        self.quantizer_loss_weight = quantizer_loss_weight
        self.perceptual = perceptual
        self.perceptual_loss_weight = perceptual_loss_weight
        self.perceptual_num_frames = perceptual_num_frames
        self.precision = precision

    def __call__(
        self,
        real: Video,
        out: Reconstruction,
        step: int,
        generator: torch.Generator | None = None,
    ) -> Loss:
        """The loss at optimizer step `step`, in float32."""
        recon, real = out.recon.float(), real.float()
        picture = {"reconstruction": self.reconstruction_loss(recon, real)}
        weights = {"reconstruction": self.reconstruction_loss_weight}
        if self.perceptual is not None and self.perceptual_loss_weight > 0:
            picks = pick_frames(
                real.shape[2], self.perceptual_num_frames, real.shape[0], generator
            ).to(real.device)
            seen = gather_frames(recon, picks), gather_frames(real, picks)
            with autocast(recon.device, self.precision):
                picture["perceptual"] = self.perceptual(*seen).float()
            weights["perceptual"] = self.perceptual_loss_weight
        code = {}
        for name, weight in self.quantizer.loss_weights(step).items():
            code[name] = out.quantizer_terms[name]
            weights[name] = weight * self.quantizer_loss_weight
        parts = (_weighted_sum(terms, weights, recon.device) for terms in (picture, code))
        return Loss(*parts, picture | code, weights)


def _weighted_sum(
    terms: dict[str, Tensor], weights: dict[str, float], device: torch.device
) -> Float[Tensor, ""]:
    if not terms:
        return torch.zeros((), device=device)
    return torch.stack([term * weights[name] for name, term in terms.items()]).sum()


def find_perceptual(config: TrainingConfig, given: nn.Module | None) -> nn.Module | None:
    """The module given, the one whose weights are named, or None where its weight is 0."""
    if config.perceptual_loss_weight == 0:
        return None
    if given is not None:
        return given.eval().requires_grad_(False)
    if config.perceptual_weights is None:
        raise ValueError(
            f"perceptual_loss_weight is {config.perceptual_loss_weight}, but there are no weights: "
            "give perceptual_weights a local file or 'torchvision:vgg16' (a download), or hand a "
            "module of your own to the trainer as perceptual_loss"
        )
    return build_perceptual(config.perceptual_weights)

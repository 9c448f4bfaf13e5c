"""Forward pass and loss of the tokenizer."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.discriminators.discriminator import gather_frames, pick_frames
from magvit2_pytorch.functional import autocast
from magvit2_pytorch.losses.perceptual import build_perceptual
from magvit2_pytorch.losses.reconstruction import RECONSTRUCTION_LOSSES
from magvit2_pytorch.quantizers.quantizer import Quantizer
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.types import Codes, Latents, Precision, Video


class Reconstruction(NamedTuple):
    """Outputs of a model's forward pass from which losses are computed."""

    recon: Video
    latents: Latents | None = None
    codes: Codes | None = None
    quantizer_terms: Mapping[str, Tensor] = MappingProxyType({})
    quantized: Latents | None = None


class Autoencoder(nn.Module):
    """Forward pass of training as one module, for wrappers that hook `forward`.

    Quantizer losses are computed here because the mean of code use over processes is part of the
    forward pass.
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
        return Reconstruction(recon, latents, codes, terms, quantized)


class Loss(NamedTuple):
    """Loss in two parts, and the named terms of their weighted sums."""

    recon_loss: Float[Tensor, ""]
    """Losses of the reconstruction: reconstruction and perceptual loss."""

    latent_loss: Float[Tensor, ""]
    """Losses of the latents: those of the quantizer."""

    terms: dict[str, Tensor]
    weights: dict[str, float]

    @property
    def total(self) -> Float[Tensor, ""]:
        return self.recon_loss + self.latent_loss


class Objective:
    """Weighted sum of reconstruction, perceptual and quantizer losses, if there is a quantizer.

    `perceptual` takes reconstructed and real frames and returns a scalar. It runs in
    `config.precision` on `perceptual_num_frames` frames of each clip, drawn by the generator of the
    step. All other losses are float32.
    """

    def __init__(
        self,
        quantizer: Quantizer | None,
        config: TrainingConfig,
        perceptual: nn.Module | None = None,
    ):
        self.quantizer = quantizer
        self.config = config
        self.reconstruction_loss = RECONSTRUCTION_LOSSES[config.reconstruction_loss]
        self.perceptual = perceptual

    def __call__(
        self,
        real: Video,
        out: Reconstruction,
        step: int,
        generator: torch.Generator | None = None,
    ) -> Loss:
        """Returns the loss at optimizer step `step`, in float32."""
        config = self.config
        recon, real = out.recon.float(), real.float()
        recon_terms = {"reconstruction": self.reconstruction_loss(recon, real)}
        weights = {"reconstruction": config.reconstruction_loss_weight}
        if self.perceptual is not None and config.perceptual_loss_weight > 0:
            picks = pick_frames(
                real.shape[2], config.perceptual_num_frames, real.shape[0], generator
            ).to(real.device)
            frames = gather_frames(recon, picks), gather_frames(real, picks)
            with autocast(recon.device, config.precision):
                recon_terms["perceptual"] = self.perceptual(*frames).float()
            weights["perceptual"] = config.perceptual_loss_weight
        latent_terms = {}
        quantizer_weights = {} if self.quantizer is None else self.quantizer.loss_weights(step)
        for name, weight in quantizer_weights.items():
            latent_terms[name] = out.quantizer_terms[name]
            weights[name] = weight * config.quantizer_loss_weight
        parts = (_weighted_sum(t, weights, recon.device) for t in (recon_terms, latent_terms))
        return Loss(*parts, recon_terms | latent_terms, weights)


def _weighted_sum(
    terms: dict[str, Tensor], weights: dict[str, float], device: torch.device
) -> Float[Tensor, ""]:
    if not terms:
        return torch.zeros((), device=device)
    return torch.stack([term * weights[name] for name, term in terms.items()]).sum()


def load_perceptual(config: TrainingConfig, module: nn.Module | None) -> nn.Module | None:
    """The perceptual network, frozen; None if its weight is 0."""
    if config.perceptual_loss_weight == 0:
        return None
    if module is not None:
        return module.eval().requires_grad_(False)
    if config.perceptual_weights is None:
        raise ValueError(
            f"perceptual_loss_weight is {config.perceptual_loss_weight}, but there are no weights: "
            "set perceptual_weights to a local file or 'torchvision:vgg16' (a download), or pass "
            "your own module to the trainer as perceptual_loss"
        )
    return build_perceptual(config.perceptual_weights)

"""From one forward pass of the tokenizer to the loss: named terms, each with its weight."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.functional import autocast
from magvit2_pytorch.losses import RECONSTRUCTION_LOSSES
from magvit2_pytorch.quantizers import Quantizer
from magvit2_pytorch.tokenizer.model import VideoTokenizer
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
    """The scalar to minimise, and the named terms it is the weighted sum of."""

    total: Float[Tensor, ""]
    terms: dict[str, Tensor]
    weights: dict[str, float]


class Objective:
    """Reconstruction and quantizer losses. A term and its weight share one name everywhere.

    Whatever joins later (adversarial, perceptual) reads the same `Reconstruction`: there is no
    second forward pass.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        reconstruction_loss: str = "mse",
        reconstruction_loss_weight: float = 1.0,
        quantizer_loss_weight: float = 1.0,
    ):
        self.quantizer = quantizer
        self.reconstruction_loss = RECONSTRUCTION_LOSSES[reconstruction_loss]
        self.reconstruction_loss_weight = reconstruction_loss_weight
        self.quantizer_loss_weight = quantizer_loss_weight

    def __call__(self, real: Video, out: Reconstruction, step: int) -> Loss:
        """The loss at optimizer step `step`, in float32."""
        terms = {"reconstruction": self.reconstruction_loss(out.recon.float(), real.float())}
        weights = {"reconstruction": self.reconstruction_loss_weight}
        for name, weight in self.quantizer.loss_weights(step).items():
            terms[name] = out.quantizer_terms[name]
            weights[name] = weight * self.quantizer_loss_weight
        total = torch.stack([terms[name] * weights[name] for name in weights]).sum()
        return Loss(total, terms, weights)

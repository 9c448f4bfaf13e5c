"""No quantization at all: latents for diffusion models."""

import torch
from torch import Tensor

from magvit2_pytorch.quantizers.quantizer import (
    QUANTIZERS,
    Quantized,
    Quantizer,
    wide,
    without_autocast,
)
from magvit2_pytorch.types import Codes, Latents


@QUANTIZERS.register("continuous")
class Continuous(Quantizer):
    """Latents pass as they are (W.A.L.T., arXiv 2312.06662), or drawn from a Gaussian.

    With `kl` the encoder gives mean and log-variance, `decode` hears a draw while training and
    the mean otherwise, and the loss is the divergence from a unit Gaussian, a mean over
    positions and channels. Source: VAE (arXiv 1312.6114), appendix B.
    """

    def __init__(self, dim: int, kl: bool = False, kl_loss_weight: float = 1e-6):
        super().__init__()
        self.quantized_dim, self.latent_dim = dim, dim * 2 if kl else dim
        self.kl, self.kl_loss_weight = kl, kl_loss_weight

    def forward(self, latents: Latents) -> Quantized:
        with without_autocast(latents):
            if not self.kl:
                return Quantized(wide(latents), None)
            mean, log_variance = self._gaussian(latents)
            if not self.training:
                return Quantized(mean, None)
            return Quantized(mean + torch.randn_like(mean) * (0.5 * log_variance).exp(), None)

    def decode_codes(self, codes: Codes) -> Latents:
        raise ValueError("continuous latents have no codes: use encode and decode")

    def loss_terms(self, latents: Latents) -> dict[str, Tensor]:
        if not self.kl:
            return {}
        with without_autocast(latents):
            mean, log_variance = self._gaussian(latents)
            return {"kl": 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()}

    def loss_weights(self, step: int) -> dict[str, float]:
        return {"kl": self.kl_loss_weight} if self.kl else {}

    def _gaussian(self, latents: Latents) -> tuple[Latents, Latents]:
        mean, log_variance = wide(latents).chunk(2, dim=1)
        # Beyond these the exponential leaves float32's comfort, and no latent needs it.
        return mean, log_variance.clamp(-30.0, 20.0)

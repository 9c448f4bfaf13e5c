"""No quantization at all: latents for diffusion models."""

import torch
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.quantizers.quantizer import (
    QUANTIZERS,
    Quantized,
    Quantizer,
    StoredCodes,
    wide,
    without_autocast,
)
from magvit2_pytorch.types import Latents

LOG_VARIANCE_RANGE = (-30.0, 20.0)
"""Beyond these the exponential leaves float32's comfort, and no latent needs it (LDM's choice)."""


@QUANTIZERS.register("continuous")
class Continuous(Quantizer):
    """Latents pass as they are (W.A.L.T., arXiv 2312.06662), or are drawn from a Gaussian.

    With `kl` the encoder gives mean and log-variance, `decode` hears a draw while training and
    the mean otherwise, and the loss is the divergence from a unit Gaussian in nats, a mean over
    positions and channels: 1/2 (mean^2 + variance - 1 - log variance).
    Sources: VAE (arXiv 1312.6114), appendix B; the weight 1e-6 is the latent diffusion models'
    (arXiv 2112.10752), who sum over channels and pixels alike where we take means of both.
    """

    def __init__(self, dim: int, kl: bool = False, kl_loss_weight: float = 1e-6):
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim is {dim}: latents need one channel or more")
        self.quantized_dim, self.latent_dim = dim, dim * 2 if kl else dim
        self.kl, self.kl_loss_weight = kl, kl_loss_weight

    def forward(self, latents: Latents, generator: torch.Generator | None = None) -> Quantized:
        """`generator` makes the draw repeatable; it lives where the latents do."""
        self.check_latents(latents)
        if not self.kl:
            return Quantized(wide(latents), None)
        with without_autocast(latents):
            mean, log_variance = self._gaussian(latents)
            if not self.training:
                return Quantized(mean, None)
            noise = torch.empty_like(mean).normal_(generator=generator)
            return Quantized(mean + noise * (0.5 * log_variance).exp(), None)

    def decode_codes(self, codes: StoredCodes) -> Latents:
        raise ValueError("this tokenizer is continuous, it has no codes: use encode and decode")

    def loss_terms(self, latents: Latents) -> dict[str, Tensor]:
        self.check_latents(latents)
        if not self.kl:
            return {}
        with without_autocast(latents):
            mean, log_variance = self._gaussian(latents)
            return {"kl": 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()}

    def loss_weights(self, step: int) -> dict[str, float]:
        return {"kl": self.kl_loss_weight} if self.kl else {}

    def _gaussian(
        self, latents: Latents
    ) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, "b c t h w"]]:
        mean, log_variance = wide(latents).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

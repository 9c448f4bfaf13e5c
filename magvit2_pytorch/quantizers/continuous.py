"""Continuous latents, for diffusion models."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.config import check_at_least_one
from magvit2_pytorch.functional import at_least_float32, check_finite
from magvit2_pytorch.quantizers.quantizer import (
    QUANTIZERS,
    Quantized,
    Quantizer,
    StoredCodes,
    without_autocast,
)
from magvit2_pytorch.types import Latents

LOG_VARIANCE_RANGE = (-30.0, 20.0)
"""Clamp of the log-variance, so that its exponential is safe in float32; as in LDM."""

STATISTICS = ("latent_mean", "latent_std", "num_latents")
"""Buffers with the measured statistics of the latents."""


@QUANTIZERS.register("continuous")
class Continuous(Quantizer):
    """Unquantized latents (W.A.L.T., arXiv 2312.06662), or samples of a Gaussian.

    With `kl` the encoder returns mean and log-variance. The decoder gets a sample in training
    mode and the mean otherwise. The loss is the KL divergence from a unit Gaussian in nats,
    averaged over positions and channels: 1/2 (mean^2 + variance - 1 - log variance).
    Sources: VAE (arXiv 1312.6114), appendix B. The weight 1e-6 is that of latent diffusion
    (arXiv 2112.10752), which sums over channels and pixels where this loss takes means.

    Mean and standard deviation of the latents (of their means, with `kl`) can be measured; they are
    stored with the weights and used by `normalize` only.
    """

    def __init__(self, dim: int, kl: bool = False, kl_loss_weight: float = 1e-6):
        super().__init__()
        check_at_least_one(dim=dim)
        self.quantized_dim, self.latent_dim = dim, dim * 2 if kl else dim
        self.kl, self.kl_loss_weight = kl, kl_loss_weight
        self.register_buffer("latent_mean", torch.zeros(dim, dtype=torch.float32))
        self.register_buffer("latent_std", torch.ones(dim, dtype=torch.float32))
        # Number of measured positions; 0 if there are no statistics.
        self.register_buffer("num_latents", torch.zeros((), dtype=torch.int64))

    def forward(self, latents: Latents, generator: torch.Generator | None = None) -> Quantized:
        """Returns latents or samples, drawn by `generator` on their device."""
        self.check_latents(latents)
        if not self.kl:
            return Quantized(at_least_float32(latents), None)
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

    # Statistics for diffusion models

    @property
    def has_statistics(self) -> bool:
        """True if mean and standard deviation of the latents were measured."""
        return bool(self.num_latents > 0)

    def normalize(self, latents: Latents) -> Latents:
        """Normalizes each channel by its mean and standard deviation."""
        self._check_normalizable(latents)
        mean, std = self._statistics(latents)
        return ((at_least_float32(latents) - mean) / std).to(latents.dtype)

    def denormalize(self, normalized: Latents) -> Latents:
        """Undoes `normalize`."""
        self._check_normalizable(normalized)
        mean, std = self._statistics(normalized)
        return (at_least_float32(normalized) * std + mean).to(normalized.dtype)

    @torch.no_grad()
    def store_statistics(
        self, mean: Float[Tensor, " c"], std: Float[Tensor, " c"], num_latents: int
    ) -> None:
        """Stores statistics measured over `num_latents` positions."""
        fits = mean.shape == std.shape == self.latent_mean.shape
        usable = mean.isfinite().all() and std.isfinite().all() and (std > 0).all()
        if not (fits and usable and num_latents > 0):
            raise ValueError(
                f"mean {mean.tolist()} and std {std.tolist()} of {num_latents} latents: give "
                f"{self.quantized_dim} finite values of each, std above 0, of one latent or more"
            )
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)
        self.num_latents.fill_(num_latents)

    def reset_statistics(self) -> None:
        """Clears the statistics, for weights that have changed since the measurement."""
        self.latent_mean.zero_()
        self.latent_std.fill_(1.0)
        self.num_latents.zero_()

    def _statistics(
        self, latents: Latents
    ) -> tuple[Float[Tensor, "1 c 1 1 1"], Float[Tensor, "1 c 1 1 1"]]:
        return tuple(
            rearrange(at_least_float32(value.to(latents.device)), "c -> 1 c 1 1 1")
            for value in (self.latent_mean, self.latent_std)
        )

    def _check_normalizable(self, latents: Latents) -> None:
        if latents.ndim != 5 or latents.shape[1] != self.quantized_dim:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}: give b d t h w with d = "
                f"{self.quantized_dim}, as quantize(encode(video)).quantized has it"
            )
        # While tracing, and on the meta device, there are no values to check.
        if self.num_latents.is_meta or torch.compiler.is_compiling():
            return
        if not self.has_statistics:
            raise ValueError(
                "the latents of this tokenizer were never measured: run measure_latents(tokenizer, "
                "dataset) of magvit2_pytorch.training.latent_statistics, then save_pretrained"
            )
        check_finite(latents, "latents")

    def _gaussian(
        self, latents: Latents
    ) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, "b c t h w"]]:
        mean, log_variance = at_least_float32(latents).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

"""Reconstruction losses: pure functions of two tensors."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.registry import Registry

ReconstructionLoss = Callable[[Tensor, Tensor], Tensor]

RECONSTRUCTION_LOSSES: Registry[ReconstructionLoss] = Registry("reconstruction loss")


@RECONSTRUCTION_LOSSES.register("mse")
def mse_loss(recon: Float[Tensor, "..."], real: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean squared error, which determines PSNR. The loss of MAGVIT-v2."""
    return (recon - real).square().mean()


@RECONSTRUCTION_LOSSES.register("l1")
def l1_loss(recon: Float[Tensor, "..."], real: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean absolute error: sharper edges at a lower PSNR."""
    return (recon - real).abs().mean()


@RECONSTRUCTION_LOSSES.register("charbonnier")
def charbonnier_loss(
    recon: Float[Tensor, "..."], real: Float[Tensor, "..."], eps: float = 0.05
) -> Float[Tensor, ""]:
    """Mean of sqrt(d^2 + eps^2) - eps: quadratic below `eps`, absolute above.

    Source: Charbonnier et al., ICIP 1994.
    """
    return ((recon - real).square() + eps**2).sqrt().mean() - eps

"""How far a reconstruction is from the real video: pure functions of two tensors."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.registry import Registry

ReconstructionLoss = Callable[[Tensor, Tensor], Tensor]

RECONSTRUCTION_LOSSES: Registry[ReconstructionLoss] = Registry("reconstruction loss")


@RECONSTRUCTION_LOSSES.register("mse")
def mse_loss(recon: Float[Tensor, "..."], real: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean squared error: what PSNR measures. MAGVIT-v2 trains with it."""
    return (recon - real).square().mean()


@RECONSTRUCTION_LOSSES.register("l1")
def l1_loss(recon: Float[Tensor, "..."], real: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean absolute error: edges stay sharper, at some PSNR."""
    return (recon - real).abs().mean()


@RECONSTRUCTION_LOSSES.register("charbonnier")
def charbonnier_loss(
    recon: Float[Tensor, "..."], real: Float[Tensor, "..."], eps: float = 0.05
) -> Float[Tensor, ""]:
    """sqrt(d^2 + eps^2) - eps: squared error for differences below `eps`, absolute above.

    Source: Charbonnier et al., ICIP 1994.
    """
    return ((recon - real).square() + eps**2).sqrt().mean() - eps

"""Distances between clips, in pixels or a discriminator's features."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.config import Registry
from magvit2_pytorch.functional import at_least_float32

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


def feature_matching_loss(
    real: Sequence[Float[Tensor, "b ..."]],
    fake: Sequence[Float[Tensor, "b ..."]],
    relative: bool = True,
    eps: float = 1e-6,
) -> Float[Tensor, ""]:
    """Mean over layers of the mean absolute difference of features.

    `real` gets no gradient. With `relative`, the difference of each layer is divided by the mean
    magnitude of its real features. Layers then have equal weight, and the discriminator cannot
    change the loss by scaling its features, which have no norm here. Without it, the loss is that
    of pix2pixHD.
    Sources: pix2pixHD (arXiv 1711.11585), equation 4; EnCodec (arXiv 2210.13438), equation 2.
    """
    if not real or len(real) != len(fake):
        raise ValueError(
            f"{len(real)} layers of real features and {len(fake)} of fake: give one or more, "
            "and the same number of both"
        )
    terms = []
    for layer, (real_map, fake_map) in enumerate(zip(real, fake, strict=True)):
        if real_map.shape != fake_map.shape:
            raise ValueError(
                f"features of layer {layer} are {tuple(real_map.shape)} of real and "
                f"{tuple(fake_map.shape)} of fake: each fake is compared with its own real video"
            )
        real_map = at_least_float32(real_map.detach())
        difference = (at_least_float32(fake_map) - real_map).abs().mean()
        terms.append(difference / (real_map.abs().mean() + eps) if relative else difference)
    return torch.stack(terms).mean()

"""Adversarial losses of both sides, and their adaptive weight."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.config import Registry
from magvit2_pytorch.functional import at_least_float32

RealLogits = Float[Tensor, "b ..."]
FakeLogits = Float[Tensor, "c ..."]


class AdversarialLoss(NamedTuple):
    """Losses of both sides, functions of real and fake logits."""

    discriminator: Callable[[RealLogits, FakeLogits], Tensor]
    generator: Callable[[RealLogits, FakeLogits], Tensor]


ADVERSARIAL_LOSSES: Registry[AdversarialLoss] = Registry("adversarial loss")


def hinge_discriminator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(x'))]: logits beyond +-1 have no gradient.

    Source: Geometric GAN (arXiv 1705.02894), section 3; SAGAN (arXiv 1805.08318), equation 4.
    """
    return F.relu(1 - at_least_float32(real)).mean() + F.relu(1 + at_least_float32(fake)).mean()


def hinge_generator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
    """-E[D(x')], from the same sources."""
    return -at_least_float32(fake).mean()


def non_saturating_discriminator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
    """E[softplus(-D(x))] + E[softplus(D(x'))], cross-entropy; the loss of MAGVIT-v2.

    Source: Goodfellow et al. (arXiv 1406.2661), equation 1.
    """
    return F.softplus(-at_least_float32(real)).mean() + F.softplus(at_least_float32(fake)).mean()


def non_saturating_generator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
    """E[softplus(-D(x'))], from section 3 of the same paper."""
    return F.softplus(-at_least_float32(fake)).mean()


def relativistic_discriminator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
    """E[softplus(-(D(x) - D(x')))], where a pair is a video and its reconstruction.

    Use it with gradient penalties on both real and fake videos.
    Source: RpGAN (arXiv 1807.00734), section 4; R3GAN (arXiv 2501.05441), equation 2.
    """
    return F.softplus(-_difference(real, fake)).mean()


def relativistic_generator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
    """E[softplus(-(D(x') - D(x)))], from the same sources."""
    return F.softplus(_difference(real, fake)).mean()


for _name, _loss in {
    "hinge": AdversarialLoss(hinge_discriminator, hinge_generator),
    "non_saturating": AdversarialLoss(non_saturating_discriminator, non_saturating_generator),
    "relativistic": AdversarialLoss(relativistic_discriminator, relativistic_generator),
}.items():
    ADVERSARIAL_LOSSES.register(_name)(_loss)


def _difference(real: RealLogits, fake: FakeLogits) -> Float[Tensor, "b ..."]:
    # Broadcasting would silently pair every sample with every other one.
    if real.shape != fake.shape:
        raise ValueError(
            f"logits of real {tuple(real.shape)} and of fake {tuple(fake.shape)} are not pairs: "
            "a relativistic loss needs one fake video of the same size per real video"
        )
    return at_least_float32(real) - at_least_float32(fake)


@torch.no_grad()
def adaptive_weight_from_gradients(
    reference: Float[Tensor, "*shape"],
    adversarial: Float[Tensor, "*shape"],
    max_weight: float = 1e4,
    eps: float = 1e-4,
) -> Float[Tensor, ""]:
    """Returns |reference| / (|adversarial| + eps), at most `max_weight`.

    `reference` is the gradient of the reconstruction and perceptual losses with respect to the
    weight of the last decoder layer, `adversarial` that of the adversarial loss. Scaled by this
    weight, both have the same norm there. The weight is 0 if either norm is not finite, so that
    the discriminator does not dominate such a step. For one weight on several processes, average
    the gradients over processes first.
    Source: VQGAN (arXiv 2012.09841), equation 7; eps and the limit are from its code.
    """
    norms = torch.stack(
        [torch.linalg.vector_norm(at_least_float32(x)) for x in (reference, adversarial)]
    )
    weight = (norms[0] / (norms[1] + eps)).clamp(max=max_weight)
    return torch.where(norms.isfinite().all(), weight, torch.zeros_like(weight))

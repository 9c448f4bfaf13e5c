"""Adversarial losses of both sides, and their adaptive weight."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.config import Registry
from magvit2_pytorch.functional import at_least_float32

RealLogits = Float[Tensor, "b ..."]
FakeLogits = Float[Tensor, "c ..."]


class AdversarialLoss(ABC):
    """Pair of loss functions without state: call the static methods."""

    @staticmethod
    @abstractmethod
    def discriminator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
        """Loss of the discriminator."""

    @staticmethod
    @abstractmethod
    def generator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
        """Loss of the generator."""


ADVERSARIAL_LOSSES: Registry[type[AdversarialLoss]] = Registry("adversarial loss")


@ADVERSARIAL_LOSSES.register("hinge")
class Hinge(AdversarialLoss):
    """Hinge loss: logits beyond +-1 give the discriminator no gradient.

    D: E[max(0, 1 - D(x))] + E[max(0, 1 + D(x'))]; G: -E[D(x')].
    Source: Geometric GAN (arXiv 1705.02894), section 3; SAGAN (arXiv 1805.08318), equation 4.
    """

    @staticmethod
    def discriminator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
        return F.relu(1 - at_least_float32(real)).mean() + F.relu(1 + at_least_float32(fake)).mean()

    @staticmethod
    def generator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
        return -at_least_float32(fake).mean()


@ADVERSARIAL_LOSSES.register("non_saturating")
class NonSaturating(AdversarialLoss):
    """Non-saturating cross-entropy, the loss of MAGVIT-v2.

    D: E[softplus(-D(x))] + E[softplus(D(x'))]; G: E[softplus(-D(x'))].
    Source: Goodfellow et al. (arXiv 1406.2661), equation 1, and section 3 for the generator.
    """

    @staticmethod
    def discriminator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
        return (
            F.softplus(-at_least_float32(real)).mean() + F.softplus(at_least_float32(fake)).mean()
        )

    @staticmethod
    def generator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
        return F.softplus(-at_least_float32(fake)).mean()


@ADVERSARIAL_LOSSES.register("relativistic")
class Relativistic(AdversarialLoss):
    """Relativistic loss of the difference between the logits of a pair.

    D: E[softplus(-(D(x) - D(x')))]; G: E[softplus(-(D(x') - D(x)))]. A pair is a video and its
    reconstruction. Use it with gradient penalties on both real and fake videos.
    Source: RpGAN (arXiv 1807.00734), section 4; R3GAN (arXiv 2501.05441), equation 2.
    """

    @staticmethod
    def discriminator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
        return F.softplus(-_difference(real, fake)).mean()

    @staticmethod
    def generator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
        return F.softplus(_difference(real, fake)).mean()


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

"""What a discriminator and a generator want of each other: functions of logits to a scalar.

Logits have one axis of samples and any number of others (a patch discriminator's map); each of
them counts alike. They are unbounded, and above 0 where the discriminator believes in the video.
"""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.functional import at_least_float32
from magvit2_pytorch.registry import Registry

RealLogits = Float[Tensor, "b ..."]
FakeLogits = Float[Tensor, "c ..."]


class AdversarialLoss(ABC):
    """The two sides of one game. There is no state: call the class's own functions."""

    @staticmethod
    @abstractmethod
    def discriminator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]: ...

    @staticmethod
    @abstractmethod
    def generator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]: ...


ADVERSARIAL_LOSSES: Registry[type[AdversarialLoss]] = Registry("adversarial loss")


@ADVERSARIAL_LOSSES.register("hinge")
class Hinge(AdversarialLoss):
    """The discriminator pulls logits past +-1 and no further; the generator raises its own.

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
    """Cross-entropy, where the generator maximizes log sigmoid(D(x')). MAGVIT-v2 trains with it.

    D: E[softplus(-D(x))] + E[softplus(D(x'))]; G: E[softplus(-D(x'))].
    Source: Goodfellow et al. (arXiv 1406.2661), equation 1 and what section 3 says of its start.
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
    """Each real video, or patch of its map, need only be more credible than the fake beside it.

    D: E[softplus(-(D(x) - D(x')))]; G: E[softplus(-(D(x') - D(x)))]. A tokenizer's pairs are a
    video and its reconstruction. Both gradient penalties, on real and on fake, belong to it.
    Source: RpGAN (arXiv 1807.00734), section 4; R3GAN (arXiv 2501.05441), equation 2.
    """

    @staticmethod
    def discriminator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
        return F.softplus(-_advantage(real, fake)).mean()

    @staticmethod
    def generator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
        return F.softplus(_advantage(real, fake)).mean()


def _advantage(real: RealLogits, fake: FakeLogits) -> Float[Tensor, "b ..."]:
    # Broadcasting would pair every sample with every other one, and say nothing.
    if real.shape != fake.shape:
        raise ValueError(
            f"logits of real {tuple(real.shape)} and of fake {tuple(fake.shape)} are no pairs: "
            "a relativistic loss needs one fake to each real video, of the same size"
        )
    return at_least_float32(real) - at_least_float32(fake)

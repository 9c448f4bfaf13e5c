"""Adversarial losses of both sides, gradient penalties, LeCAM, and the adaptive weight."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.config import Registry
from magvit2_pytorch.functional import at_least_float32
from magvit2_pytorch.runtime import num_processes

RealLogits = Float[Tensor, "b ..."]
FakeLogits = Float[Tensor, "c ..."]


class AdversarialLoss(NamedTuple):
    """Losses of both sides, functions of real and fake logits."""

    discriminator: Callable[[RealLogits, FakeLogits], Tensor]
    generator: Callable[[RealLogits, FakeLogits], Tensor]


ADVERSARIAL_LOSSES: Registry[AdversarialLoss] = Registry("adversarial loss")


def hinge_discriminator(real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(x'))].

    Logits beyond +-1 have no gradient. Sources: Geometric GAN (arXiv 1705.02894), section 3; SAGAN
    (arXiv 1805.08318), equation 4.
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
    weight, both have the same norm there. The weight is 0 if either norm is not finite. For one
    weight on several processes, average the gradients over processes first.
    Source: VQGAN (arXiv 2012.09841), equation 7; eps and the limit are from its code.
    """
    norms = torch.stack(
        [torch.linalg.vector_norm(at_least_float32(x)) for x in (reference, adversarial)]
    )
    weight = (norms[0] / (norms[1] + eps)).clamp(max=max_weight)
    return torch.where(norms.isfinite().all(), weight, torch.zeros_like(weight))


Inputs = tuple[Float[Tensor, "b ..."], ...]
Logits = tuple[Float[Tensor, "b ..."], ...]
GradientPenalty = Callable[[Inputs, Logits], Tensor]

GRADIENT_PENALTIES: Registry[GradientPenalty] = Registry("gradient penalty")


@GRADIENT_PENALTIES.register("r1")
def r1_penalty(inputs: Inputs, logits: Logits) -> Float[Tensor, ""]:
    """R1 or R2 penalty, E[|grad D(x)|^2].

    It is R1 on real videos and R2 on fake ones. The factor 1/2 of the paper is left out: use the
    weight gamma / 2. MAGVIT-v2 and O2-MAGVIT2 use the weight 10. O2-MAGVIT2 adds a constant of
    1e-5, which has no gradient, and computes it every 20 steps without multiplying it by 20.
    Source: Mescheder et al. (arXiv 1801.04406), equation 9.
    """
    squares = [at_least_float32(g).square().sum() for g in _score_gradients(inputs, logits)]
    return torch.stack(squares).sum() / len(inputs[0])


@GRADIENT_PENALTIES.register("one_centered")
def one_centered_penalty(inputs: Inputs, logits: Logits) -> Float[Tensor, ""]:
    """Penalty of gradient norms other than 1, E[(|grad D(x)| - 1)^2].

    Its inputs are points between real and fake videos, from `points_between`.
    Source: WGAN-GP (arXiv 1704.00028), equation 3, with the weight 10.
    """
    gradients = [at_least_float32(g).reshape(len(g), -1) for g in _score_gradients(inputs, logits)]
    # The gradient of vector_norm at 0 is 0; that of a square root would be NaN.
    norms = torch.linalg.vector_norm(torch.cat(gradients, dim=1), dim=1)
    return (norms - 1).square().mean()


def points_between(
    real: Float[Tensor, "b ..."],
    fake: Float[Tensor, "b ..."],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b ..."]:
    """Random points between real and fake, detached, that require a gradient."""
    if real.shape != fake.shape:
        raise ValueError(
            f"real {tuple(real.shape)} and fake {tuple(fake.shape)} differ in shape: "
            "give one fake of the same size per real"
        )
    shape = (len(real), *(1,) * (real.ndim - 1))
    fraction = torch.rand(shape, generator=generator, dtype=real.dtype, device=real.device)
    return torch.lerp(fake.detach(), real.detach(), fraction).requires_grad_()


def _score_gradients(inputs: Inputs, logits: Logits) -> tuple[Tensor, ...]:
    """Differentiable gradients of the scores with respect to each input."""
    if not inputs or not logits:
        raise ValueError("a gradient penalty needs at least one input and one map of logits")
    sizes = {len(x) for x in (*inputs, *logits)}
    if len(sizes) > 1:
        raise ValueError(
            f"inputs and logits hold different numbers of samples, {sorted(sizes)}: "
            "compute the penalty of each discriminator separately"
        )
    if not all(x.requires_grad for x in (*inputs, *logits)):
        raise ValueError(
            "the inputs did not require a gradient when the discriminator ran: give it "
            "x.detach().requires_grad_() with gradients enabled"
        )
    # Samples do not interact in a discriminator, so the sum has the gradient of each of them.
    score = torch.stack(
        [at_least_float32(x).reshape(len(x), -1).mean(1).sum() for x in logits]
    ).sum()
    return torch.autograd.grad(score, inputs, create_graph=True)


def lecam_loss(
    real: RealLogits, fake: FakeLogits, real_mean: Float[Tensor, ""], fake_mean: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Returns E[max(0, D(x) - fake_mean)^2] + E[max(0, real_mean - D(x'))^2].

    Equation 3 of the paper has no max, but the code of its authors has: a real logit below the mean
    of the fakes needs no regularization. The expectation is over single logits, as in that code;
    O2-MAGVIT2 takes the mean logit of the batch instead of D.
    Source: Tseng et al. (arXiv 2104.03310), section 3.2; google/lecam-gan, stylegan2.
    """
    real, fake = at_least_float32(real), at_least_float32(fake)
    return F.relu(real - fake_mean).square().mean() + F.relu(real_mean - fake).square().mean()


class LeCamRegularizer(nn.Module):
    """LeCam loss with running means of real and fake logits.

    After n updates, a mean is the exponentially weighted average of the means of the n batches,
    with weights that sum to 1, as in the code of the authors; O2-MAGVIT2, whose decay this is,
    starts from zeros. Means are float32 and part of the state dict. Before the first update, the
    loss and its gradient are 0. With `distributed`, an update in training mode averages the logits
    of all processes; all of them must call it.
    """

    def __init__(self, decay: float = 0.999, distributed: bool = True):
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}: it must lie between 0 and 1, as 0.999 does")
        self.decay, self.distributed = decay, distributed
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, real: RealLogits, fake: FakeLogits) -> None:
        """Updates the means with the logits of one step, without device synchronization."""
        sums = torch.stack((at_least_float32(real).sum(), at_least_float32(fake).sum()))
        counts = torch.stack([sums.new_full((), logits.numel()) for logits in (real, fake)])
        if self.distributed and self.training and num_processes() > 1:
            # Processes may have different numbers of samples: their means must be weighted.
            totals = torch.cat((sums, counts))
            dist.all_reduce(totals)
            sums, counts = totals.chunk(2)
        real_mean, fake_mean = (sums / counts).to(self.real_mean.dtype)
        self.num_updates += 1
        # (1 - decay) / (1 - decay^n): 1 at the first update up to rounding.
        total_weight = -torch.expm1(self.num_updates * math.log(self.decay))
        weight = (-math.expm1(math.log(self.decay)) / total_weight).clamp(max=1)
        self.real_mean.lerp_(real_mean, weight)
        self.fake_mean.lerp_(fake_mean, weight)

    def forward(self, real: RealLogits, fake: FakeLogits) -> Float[Tensor, ""]:
        loss = lecam_loss(real, fake, self.real_mean, self.fake_mean)
        # A product, so that logits that are not finite show in the loss of the first step too.
        return loss * (self.num_updates > 0)

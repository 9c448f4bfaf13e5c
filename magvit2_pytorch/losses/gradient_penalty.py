"""Gradient penalties, to add to the loss of a discriminator.

The score of a sample is the mean of its logits over the map, summed over the maps in `logits`. It
is a mean, as in the adversarial losses, so that a penalty does not grow with the size of the map.
A penalty is a function of the gradient of this score with respect to all inputs of the sample.

Inputs must require a gradient before the discriminator runs:
    inputs = (video.detach().requires_grad_(),)
    loss = loss + 10 * r1_penalty(inputs, (discriminator(*inputs),))
Second derivatives need float32: run the discriminator without autocast. If a penalty is computed
every n steps only, multiply it by n (StyleGAN2, arXiv 1912.04958, section 3.1).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.functional import at_least_float32
from magvit2_pytorch.registry import Registry

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

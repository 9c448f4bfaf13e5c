"""How steep a discriminator may be, as a scalar to add to its loss.

A sample's score is the mean of its logits over the map, summed over discriminators where `logits`
holds several: the mean, as adversarial losses take it, so that a penalty does not grow with the
size of the map. A penalty is about the gradient of this score in all of the sample's inputs.

What goes in must have required a gradient before the discriminator saw it:
    inputs = (video.detach().requires_grad_(),)
    loss = loss + 10 * r1_penalty(inputs, (discriminator(*inputs),))
Differentiate twice in float32: leave the discriminator's pass out of autocast too. A penalty
taken only every n steps is multiplied by n (StyleGAN2, arXiv 1912.04958, section 3.1).
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
    """E[|grad D(x)|^2], without the half that the paper puts before it: weight it by gamma / 2.

    Of real videos it is R1, of fake ones R2. MAGVIT-v2 and O2-MAGVIT2 weight it by 10; the
    latter adds a constant of 1e-5 to it, which has no gradient, and takes it every 20 steps
    without multiplying it by 20.
    Source: Mescheder et al. (arXiv 1801.04406), equation 9.
    """
    squares = [at_least_float32(g).square().sum() for g in _score_gradients(inputs, logits)]
    return torch.stack(squares).sum() / len(inputs[0])


@GRADIENT_PENALTIES.register("one_centered")
def one_centered_penalty(inputs: Inputs, logits: Logits) -> Float[Tensor, ""]:
    """E[(|grad D(x)| - 1)^2], at points between real and fake: see `points_between`.

    Source: WGAN-GP (arXiv 1704.00028), equation 3, where it weighs 10.
    """
    gradients = [at_least_float32(g).reshape(len(g), -1) for g in _score_gradients(inputs, logits)]
    # Its gradient at 0 is 0; that of a square root would not be a number.
    norms = torch.linalg.vector_norm(torch.cat(gradients, dim=1), dim=1)
    return (norms - 1).square().mean()


def points_between(
    real: Float[Tensor, "b ..."],
    fake: Float[Tensor, "b ..."],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b ..."]:
    """A random point on the line between each real and its fake, detached, requiring a gradient."""
    if real.shape != fake.shape:
        raise ValueError(
            f"real {tuple(real.shape)} and fake {tuple(fake.shape)} differ in shape: "
            "there is no line between them"
        )
    shape = (len(real), *(1,) * (real.ndim - 1))
    share = torch.rand(shape, generator=generator, dtype=real.dtype, device=real.device)
    return torch.lerp(fake.detach(), real.detach(), share).requires_grad_()


def _score_gradients(inputs: Inputs, logits: Logits) -> tuple[Tensor, ...]:
    """The gradient of each sample's score in each input, itself differentiable."""
    if not inputs or not logits:
        raise ValueError("a gradient penalty needs at least one input and one map of logits")
    sizes = {len(x) for x in (*inputs, *logits)}
    if len(sizes) > 1:
        raise ValueError(
            f"inputs and logits hold different numbers of samples, {sorted(sizes)}: "
            "take the penalty of each discriminator by itself"
        )
    if not all(x.requires_grad for x in (*inputs, *logits)):
        raise ValueError(
            "the inputs did not require a gradient when the discriminator saw them: give it "
            "x.detach().requires_grad_() with gradients enabled"
        )
    # Samples do not mix in a discriminator, so one sum holds every sample's own gradient.
    score = torch.stack(
        [at_least_float32(x).reshape(len(x), -1).mean(1).sum() for x in logits]
    ).sum()
    return torch.autograd.grad(score, inputs, create_graph=True)

"""Adaptive weight of the adversarial loss, from gradient norms."""

import torch
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.functional import at_least_float32


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

"""How much the adversarial loss may weigh, from the gradients it and its rival leave."""

import torch
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.functional import at_least_float32


def adaptive_weight(
    reference: Float[Tensor, ""],
    adversarial: Float[Tensor, ""],
    last_layer: Float[Tensor, "..."],
    max_weight: float = 1e4,
    eps: float = 1e-4,
) -> Float[Tensor, ""]:
    """|grad reference| / (|grad adversarial| + eps) in the last layer's weight, detached.

    With it the two losses pull alike at the decoder's last layer. `reference` is the
    reconstruction's and the perceptual loss. The graphs of both stay for the backward pass to
    come. A caller who has the gradients anyway uses `adaptive_weight_from_gradients`; see there
    for what happens to gradients that are not finite, and on several processes.
    Source: VQGAN (arXiv 2012.09841), equation 7; its code has the eps and the limit.
    """
    if not last_layer.requires_grad:
        raise ValueError("last_layer requires no gradient: give the weight that is being trained")
    gradients = []
    for name, loss in (("reference", reference), ("adversarial", adversarial)):
        (gradient,) = (
            torch.autograd.grad(loss, last_layer, retain_graph=True, allow_unused=True)
            if loss.requires_grad
            else (None,)
        )
        if gradient is None:
            raise ValueError(
                f"the {name} loss does not depend on last_layer: give the weight of the "
                "decoder's last layer, and losses of what it made"
            )
        gradients.append(gradient)
    return adaptive_weight_from_gradients(*gradients, max_weight=max_weight, eps=eps)


@torch.no_grad()
def adaptive_weight_from_gradients(
    reference: Float[Tensor, "*shape"],
    adversarial: Float[Tensor, "*shape"],
    max_weight: float = 1e4,
    eps: float = 1e-4,
) -> Float[Tensor, ""]:
    """The weight of `adaptive_weight`, of gradients that are known; in [0, max_weight].

    Where either norm is not finite the weight is 0: a step that went wrong is not left to the
    discriminator. Gradients are those of one process; for one weight on all of them, average
    the gradients over processes first.
    """
    pull, push = (torch.linalg.vector_norm(at_least_float32(x)) for x in (reference, adversarial))
    weight = (pull / (push + eps)).clamp(max=max_weight)
    return torch.where(pull.isfinite() & push.isfinite(), weight, torch.zeros_like(weight))

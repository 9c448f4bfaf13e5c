"""A fake should excite a discriminator's layers as the real video does."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.functional import at_least_float32


def feature_matching_loss(
    real: Sequence[Float[Tensor, "b ..."]],
    fake: Sequence[Float[Tensor, "b ..."]],
    relative: bool = True,
    eps: float = 1e-6,
) -> Float[Tensor, ""]:
    """Mean over layers of the mean absolute difference of features; `real` gets no gradient.

    With `relative`, each layer's difference is divided by the mean magnitude of its real
    features, so that layers count alike and a discriminator cannot change the loss by scaling
    what it says: discriminators here have no norm that would hold their features in place.
    Without, it is pix2pixHD's.
    Sources: pix2pixHD (arXiv 1711.11585), equation 4; EnCodec (arXiv 2210.13438), equation 2.
    """
    if not real or len(real) != len(fake):
        raise ValueError(
            f"{len(real)} layers of real features and {len(fake)} of fake: give one or more, "
            "and the same layers of both"
        )
    terms = []
    for place, (ours, theirs) in enumerate(zip(fake, real, strict=True)):
        if ours.shape != theirs.shape:
            raise ValueError(
                f"features of layer {place} are {tuple(theirs.shape)} of real and "
                f"{tuple(ours.shape)} of fake: each fake is compared with its own real video"
            )
        theirs = at_least_float32(theirs.detach())
        difference = (at_least_float32(ours) - theirs).abs().mean()
        terms.append(difference / (theirs.abs().mean() + eps) if relative else difference)
    return torch.stack(terms).mean()

"""Feature matching loss on the hidden features of a discriminator."""

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

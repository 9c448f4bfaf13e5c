"""What a discriminator says."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class DiscriminatorOutput(NamedTuple):
    """Logits (high is real) and hidden maps, all with the batch first."""

    logits: tuple[Float[Tensor, "b ..."], ...]
    """One tensor a view: a logit per clip, per frame or per patch. float32, or float64 if asked."""

    features: tuple[Float[Tensor, "..."], ...]
    """Hidden maps of all views, shallow to deep, for feature matching."""

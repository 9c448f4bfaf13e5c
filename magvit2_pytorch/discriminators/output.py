"""Output of a discriminator."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class DiscriminatorOutput(NamedTuple):
    """Logits (high is real) and features, with the batch as first axis."""

    logits: tuple[Float[Tensor, "b ..."], ...]
    """One tensor per view, with a logit per clip, frame or patch. At least float32."""

    features: tuple[Float[Tensor, "..."], ...]
    """Hidden maps of all views, from shallow to deep layers, for feature matching."""

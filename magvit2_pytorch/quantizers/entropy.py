"""Exact entropies of a codebook of sign patterns, without listing its codes.

The affinity of a latent z to the code c (entries +-s) is 2 z.c / temperature, a sum over bits.
So the softmax over all 2^d codes factorises into d independent bits with
P(bit i is 1) = sigmoid(4 s z_i / temperature), and two facts follow:

- the entropy of one sample is the sum of d binary entropies;
- the mean distribution over samples is one product of two small tables (`mean_distribution`).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.quantizers.mean_distribution import mean_distribution

MAX_EXACT_BITS = 20
"""2^20 mean probabilities are 4 MB; with more bits the default is several groups of bits."""

MAX_LOGIT = 1e4
"""Entropy and gradient are 0 here, in float64 too; infinite logits would give NaN."""


def bit_logits(
    latents: Float[Tensor, "... d"], temperature: float, scale: float
) -> Float[Tensor, "... d"]:
    """Log-odds that each bit is 1, for codes with entries of +-scale."""
    return (latents * (4 * scale / temperature)).clamp(-MAX_LOGIT, MAX_LOGIT)


def sample_entropy(logits: Float[Tensor, "... d"]) -> Float[Tensor, ""]:
    """Mean entropy of the code of a sample: 0 to d ln 2 nats."""
    # With a = |logit| and q = sigmoid(-a) the binary entropy is a q + softplus(-a): both terms
    # are small where a is large, so nothing cancels and nothing overflows.
    magnitude = logits.abs()
    entropy = magnitude * torch.sigmoid(-magnitude) + F.softplus(-magnitude)
    return entropy.sum(dim=-1).mean()


def codebook_entropy(
    logits: Float[Tensor, "q n d"],
    eps: float = 0.0,
    groups: int | None = None,
    distributed: bool = False,
) -> Float[Tensor, ""]:
    """Entropy of the mean distribution over codes, in nats.

    It is d ln 2 if all codes are equally frequent. Computed as -sum p log(p + eps), averaged over
    codebooks. With several `groups` of adjacent bits it is the sum of the entropies of the groups:
    an upper bound, exact if the groups are independent. With `distributed`, the mean is over the
    samples of all processes.
    """
    total = logits.new_zeros(())
    for part in logits.split(group_sizes(logits.shape[-1], groups), dim=-1):
        mean = mean_distribution(part, distributed)
        # The clamp is for p = 0: p log p is 0 there, but its derivative is not finite.
        log_mean = (mean + eps).clamp_min(torch.finfo(mean.dtype).tiny).log()
        total = total - (mean * log_mean).sum() / logits.shape[0]
    return total


def group_sizes(num_bits: int, groups: int | None = None) -> list[int]:
    """Sizes of even groups of bits; by default the fewest within MAX_EXACT_BITS."""
    groups = math.ceil(num_bits / MAX_EXACT_BITS) if groups is None else groups
    if not 1 <= groups <= num_bits:
        raise ValueError(f"{num_bits} bits cannot form {groups} groups: use 1 to {num_bits}")
    return [num_bits // groups + (i < num_bits % groups) for i in range(groups)]

"""Entropies of a codebook of sign patterns, exact, without ever listing its codes.

The affinity of a latent z to the code c (entries +-s) is 2 z.c / temperature, a sum over bits.
So the softmax over all 2^d codes factorises into d independent bits with
P(bit i is 1) = sigmoid(4 s z_i / temperature), and two facts follow:

- the entropy of one sample is the sum of d binary entropies;
- the mean distribution over N samples is A^T B / N, where A (N x 2^(d/2)) and B are the joint
  distributions of the first and of the last half of the bits.
"""

import math

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MAX_EXACT_BITS = 20
"""2^20 probabilities are 4 MB; beyond, bits are taken in groups (see `group_sizes`)."""
ROWS_AT_A_TIME = 8192
"""Tokens whose tables are alive at once."""


def bit_logits(
    latents: Float[Tensor, "... d"], temperature: float, scale: float
) -> Float[Tensor, "... d"]:
    """Log-odds of each bit being 1."""
    return latents * (4 * scale / temperature)


def sample_entropy(logits: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean over samples of the entropy of their code, in nats."""
    # With a = |logit| and q = sigmoid(-a) the binary entropy is a q + softplus(-a): both terms
    # are small where a is large, so nothing cancels and nothing overflows.
    magnitude = logits.abs()
    entropy = magnitude * torch.sigmoid(-magnitude) + F.softplus(-magnitude)
    return entropy.sum(dim=-1).mean()


def codebook_entropy(
    logits: Float[Tensor, "n d"],
    eps: float = 0.0,
    groups: int | None = None,
    distributed: bool = True,
) -> Float[Tensor, ""]:
    """Entropy of the mean distribution over codes, in nats: d ln 2 when all are used alike.

    Computed as -sum p log(p + eps). With several groups of bits it is the sum of the groups'
    entropies, an upper bound that is exact where groups are independent. With `distributed` the
    mean is over the samples of all processes, gradients included.
    """
    total = logits.new_zeros(())
    for part in logits.split(group_sizes(logits.shape[-1], groups), dim=-1):
        mean = _mean_distribution(part, distributed)
        # The clamp is for p = 0, where p log p is 0 but its derivative is not finite.
        total = total - (mean * (mean + eps).clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()
    return total


def group_sizes(num_bits: int, groups: int | None = None) -> list[int]:
    """Even groups of bits: as many as asked for, or as few as stay within MAX_EXACT_BITS."""
    groups = groups or math.ceil(num_bits / MAX_EXACT_BITS)
    if not 1 <= groups <= num_bits:
        raise ValueError(f"{num_bits} bits do not make {groups} groups")
    return [num_bits // groups + (i < num_bits % groups) for i in range(groups)]


def _mean_distribution(
    logits: Float[Tensor, "n d"], distributed: bool
) -> Float[Tensor, "k l"]:
    half = (logits.shape[-1] + 1) // 2
    total = logits.new_zeros(2**half, 2 ** (logits.shape[-1] - half))
    chunks = logits.split(ROWS_AT_A_TIME)
    for rows in chunks:
        joint = (
            checkpoint(_joint_sum, rows, half, use_reentrant=False)
            if len(chunks) > 1 and torch.is_grad_enabled()
            else _joint_sum(rows, half)
        )
        total = total + joint
    count = logits.new_tensor(float(logits.shape[0]))
    if distributed and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        from torch.distributed.nn.functional import all_reduce

        # This all_reduce has a gradient. Ranks may hold different numbers of samples.
        total = all_reduce(total)
        dist.all_reduce(count)
    return total / count


def _joint_sum(logits: Float[Tensor, "n d"], half: int) -> Float[Tensor, "k l"]:
    first, last = (_table(part) for part in (logits[:, :half], logits[:, half:]))
    return first.T @ last


def _table(logits: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
    """Joint distribution of the bits of each sample, the first bit the most significant."""
    bits = torch.stack((torch.sigmoid(-logits), torch.sigmoid(logits)), dim=-1)
    table = logits.new_ones(logits.shape[0], 1)
    for bit in bits.unbind(dim=1):
        table = (table[:, :, None] * bit[:, None]).flatten(1)
    return table

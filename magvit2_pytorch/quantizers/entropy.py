"""Entropies of lookup-free codes, exact without a codebook.

The mean distribution of N samples is A^T B / N. Row n of A (N x 2^ceil(d/2)) is the joint
distribution of the first bits of sample n, row n of B (N x 2^floor(d/2)) that of its last bits.
Neither the N x 2^d table of all probabilities nor a codebook is ever stored.
"""

import math

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from magvit2_pytorch.quantizers.quantizer import without_autocast
from magvit2_pytorch.runtime import num_processes

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
    """Mean entropy of a sample's code, at most d ln 2 nats."""
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


CHUNK_SIZE = 2048
"""Samples whose tables are in memory at once: 4 MB per table at 18 bits."""


def mean_distribution(
    logits: Float[Tensor, "q n d"], distributed: bool = False
) -> Float[Tensor, "q k l"]:
    """Probability of each code, averaged over samples.

    `flatten(1)` of it is indexed by codes in "msb" order. `logits` are the log-odds that each bit
    is 1. With `distributed`, the mean is over the samples of all processes, and the gradient is
    that of the sum of their losses, which data-parallel training averages.
    """
    total = _JointSum.apply(logits)
    count = logits.new_full((), logits.shape[1])
    if distributed and num_processes() > 1:
        # The all_reduce of torch.distributed is not differentiable.
        from torch.distributed.nn.functional import all_reduce

        total = all_reduce(total)
        dist.all_reduce(count)
    return total / count


class _JointSum(torch.autograd.Function):
    """Sum over samples of the joint distribution of their bits, A^T B.

    The backward pass recomputes the tables instead of storing them. For bit i with probability
    s_i it uses d A[n, k] / d logit_i = A[n, k] (bit_i(k) - s_i).
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Float[Tensor, "q n d"]) -> Float[Tensor, "q k l"]:
        ctx.save_for_backward(logits)
        half = (logits.shape[-1] + 1) // 2
        total = logits.new_zeros(logits.shape[0], 2**half, 2 ** (logits.shape[-1] - half))
        for rows in logits.split(CHUNK_SIZE, dim=1):
            total.baddbmm_(_table(rows[..., :half]).mT, _table(rows[..., half:]))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Float[Tensor, "q k l"]) -> Float[Tensor, "q n d"]:
        (logits,) = ctx.saved_tensors
        half = (logits.shape[-1] + 1) // 2
        grads = []
        # Backward called under autocast must not compute these products in bf16.
        with without_autocast(logits):
            for rows in logits.split(CHUNK_SIZE, dim=1):
                first, last = rows[..., :half], rows[..., half:]
                table_first, table_last = _table(first), _table(last)
                # Both weights are d loss / d log(table entry).
                weight_first = table_first * (table_last @ grad.mT)
                weight_last = table_last * (table_first @ grad)
                grads += [_to_logits(weight_first, first), _to_logits(weight_last, last)]
        pairs = [torch.cat(pair, dim=-1) for pair in zip(grads[::2], grads[1::2], strict=True)]
        return torch.cat(pairs, dim=1)


def _table(logits: Float[Tensor, "q n d"]) -> Float[Tensor, "q n k"]:
    """Joint distribution of the bits of each sample, first bit most significant."""
    ones, zeros = torch.sigmoid(logits), torch.sigmoid(-logits)
    table = logits.new_ones(*logits.shape[:-1], 1)
    for i in range(logits.shape[-1]):
        bit = torch.stack((zeros[..., i], ones[..., i]), dim=-1)
        table = (table[..., :, None] * bit[..., None, :]).flatten(-2)
    return table


def _to_logits(
    weights: Float[Tensor, "q n k"], logits: Float[Tensor, "q n d"]
) -> Float[Tensor, "q n d"]:
    """Sums weights[k] * (bit_i(k) - s_i) over k, without cancellation."""
    dim = logits.shape[-1]
    patterns = torch.arange(2**dim, device=logits.device)[:, None]
    shifts = torch.arange(dim - 1, -1, -1, device=logits.device)
    bits = (patterns >> shifts & 1).to(logits.dtype)
    return torch.sigmoid(-logits) * (weights @ bits) - torch.sigmoid(logits) * (
        weights @ (1 - bits)
    )

"""The mean distribution over all 2^d sign patterns, from N samples of d independent bits.

It is A^T B / N, where row n of A (N x 2^ceil(d/2)) and of B (N x 2^floor(d/2)) is sample n's
joint distribution of its first and of its last bits. Neither the N x 2^d table of all
probabilities nor a codebook ever exists.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from magvit2_pytorch.quantizers.quantizer import without_autocast

ROWS_AT_A_TIME = 2048
"""Samples whose tables are alive at once: 4 MB a table at 18 bits."""


def mean_distribution(
    logits: Float[Tensor, "q n d"], distributed: bool = False
) -> Float[Tensor, "q k l"]:
    """Probability of each code, averaged over samples; `flatten(1)` puts channel 0 first (msb).

    `logits` are the log-odds of each bit being 1. With `distributed` it is the mean over the
    samples of all processes, which may hold different numbers of them. The gradient then is that
    of the sum of all processes' losses, so that the mean over processes, which data-parallel
    training takes, is the gradient of one process with all samples.
    """
    total = _JointSum.apply(logits)
    count = logits.new_full((), logits.shape[1])
    if distributed and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        # The all_reduce of torch.distributed itself would lose the gradient.
        from torch.distributed.nn.functional import all_reduce

        total = all_reduce(total)
        dist.all_reduce(count)
    return total / count


class _JointSum(torch.autograd.Function):
    """Sum over samples of the joint distribution of their bits: A^T B.

    The backward pass makes the tables again rather than keeping them, and for bit i with
    probability s_i goes by d A[n, k] / d logit_i = A[n, k] (bit_i(k) - s_i).
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Float[Tensor, "q n d"]) -> Float[Tensor, "q k l"]:
        ctx.save_for_backward(logits)
        half = (logits.shape[-1] + 1) // 2
        total = logits.new_zeros(logits.shape[0], 2**half, 2 ** (logits.shape[-1] - half))
        for rows in logits.split(ROWS_AT_A_TIME, dim=1):
            total.baddbmm_(_table(rows[..., :half]).mT, _table(rows[..., half:]))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Float[Tensor, "q k l"]) -> Float[Tensor, "q n d"]:
        (logits,) = ctx.saved_tensors
        half = (logits.shape[-1] + 1) // 2
        grads = []
        # Whoever calls backward within autocast must not turn these products into bf16.
        with without_autocast(logits):
            for rows in logits.split(ROWS_AT_A_TIME, dim=1):
                first, last = rows[..., :half], rows[..., half:]
                table_first, table_last = _table(first), _table(last)
                # The same weights serve both: each is d loss / d log(table entry).
                weight_first = table_first * (table_last @ grad.mT)
                weight_last = table_last * (table_first @ grad)
                grads += [_to_logits(weight_first, first), _to_logits(weight_last, last)]
        pairs = [torch.cat(pair, dim=-1) for pair in zip(grads[::2], grads[1::2], strict=True)]
        return torch.cat(pairs, dim=1)


def _table(logits: Float[Tensor, "q n d"]) -> Float[Tensor, "q n k"]:
    """Joint distribution of each sample's bits, the first bit the most significant."""
    ones, zeros = torch.sigmoid(logits), torch.sigmoid(-logits)
    table = logits.new_ones(*logits.shape[:-1], 1)
    for i in range(logits.shape[-1]):
        bit = torch.stack((zeros[..., i], ones[..., i]), dim=-1)
        table = (table[..., :, None] * bit[..., None, :]).flatten(-2)
    return table


def _to_logits(
    weights: Float[Tensor, "q n k"], logits: Float[Tensor, "q n d"]
) -> Float[Tensor, "q n d"]:
    """Sum over k of weights[k] * (bit_i(k) - s_i), without the cancellation where s_i is near 1."""
    dim = logits.shape[-1]
    patterns = torch.arange(2**dim, device=logits.device)[:, None]
    places = torch.arange(dim - 1, -1, -1, device=logits.device)
    bits = (patterns >> places & 1).to(logits.dtype)
    return torch.sigmoid(-logits) * (weights @ bits) - torch.sigmoid(logits) * (
        weights @ (1 - bits)
    )

"""Attention of samples of different lengths that are packed behind each other."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.layers.arithmetic import half_precision, has_kernels
from magvit2_pytorch.layers.transformer import Attend

Span = tuple[int, int]
"""First token and the one after the last of a run of tokens."""


def attend_spans(pairs: Sequence[tuple[Span, Span]]) -> Attend:
    """Queries of one span see keys of another; the queries' spans follow each other.

    Pairs of equal lengths share one call: a call costs as much as the work of some dozen tokens,
    and a mask over all pairs would cost the square of the sum of their lengths.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for number, (queries, keys) in enumerate(pairs):
        lengths = (queries[1] - queries[0], keys[1] - keys[0])
        groups.setdefault(lengths, []).append(number)

    num_queries = [stop - start for (start, stop), _ in pairs]
    keys = [span for _, span in pairs]
    overlap = keys != [span for span, _ in pairs]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dtype = half_precision(q)
        if dtype is not None and not has_kernels(dtype):
            with torch.autocast("cpu", enabled=False):
                return attend(q.float(), k.float(), v.float()).to(dtype)
        q_parts = q.split(num_queries, dim=2)
        k_parts, v_parts = (_cut(x, keys, num_queries, overlap) for x in (k, v))
        outs: list[Tensor] = list(q_parts)
        for numbers in groups.values():
            stacked = (
                torch.cat([parts[number] for number in numbers])
                for parts in (q_parts, k_parts, v_parts)
            )
            out = F.scaled_dot_product_attention(*stacked).chunk(len(numbers))
            for number, part in zip(numbers, out, strict=True):
                outs[number] = part
        return torch.cat(outs, dim=2)

    return attend


def _cut(
    x: Tensor, spans: Sequence[Span], lengths: Sequence[int], overlap: bool
) -> Sequence[Tensor]:
    """Parts of keys or values, by a split if possible: a slice has a gradient as large as `x`."""
    if not overlap:
        return x.split(lengths, dim=2)
    return [x[:, :, start:stop] for start, stop in spans]

"""LFQ's losses as the paper writes them: a softmax over every code of the codebook."""

import itertools
import math

import torch
from torch.nn import functional as F


def codebook(num_bits, scale=1.0):
    """All codes in order, the first bit the most significant."""
    patterns = itertools.product((-scale, scale), repeat=num_bits)
    return torch.tensor(list(patterns), dtype=torch.float64)


def terms(latents, num_codebooks=1, temperature=0.01, eps=0.0, spherical=False):
    """`LFQ.loss_terms` of latents b d t h w in float64, from the dense codebook."""
    rows = latents.movedim(1, -1).flatten(0, -2)
    books = []
    for z in rows.chunk(num_codebooks, dim=-1):
        z = F.normalize(z, dim=-1) if spherical else z
        codes = codebook(z.shape[-1], 1 / math.sqrt(z.shape[-1]) if spherical else 1.0)
        log_p = (2 * z @ codes.T / temperature).log_softmax(dim=-1)
        mean = log_p.exp().mean(dim=0)
        # The nearest code, by distance rather than by sign.
        nearest = codes[torch.cdist(z.detach(), codes).argmin(dim=-1)]
        books.append(
            torch.stack(
                (
                    -(log_p.exp() * log_p).sum(dim=-1).mean(),
                    -(mean * (mean + eps).log()).sum(),
                    (z - nearest).square().mean(),
                )
            )
        )
    names = ("sample_entropy", "codebook_entropy", "commitment")
    return dict(zip(names, torch.stack(books).mean(dim=0), strict=True))

"""One of two gloo processes: its share of the samples, and DDP's mean of the gradients."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from magvit2_pytorch.quantizers.lfq import LFQ

CASES = {
    # Options, samples of each process, and the terms that make the loss.
    "equal": ({}, (3, 3), ("sample_entropy", "codebook_entropy", "commitment")),
    "unequal": ({}, (4, 1), ("codebook_entropy",)),
    "several": (dict(num_codebooks=2), (2, 3), ("codebook_entropy",)),
    "spherical": (dict(spherical=True, entropy_eps=1e-5), (1, 2), ("codebook_entropy",)),
    "groups": (dict(entropy_groups=2), (1, 2), ("codebook_entropy",)),
    "off": (dict(distributed=False), (3, 3), ("codebook_entropy",)),
}


def encoder(dim):
    torch.manual_seed(1)
    return nn.Conv3d(4, dim, 1).double()


def samples(counts):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(sum(counts), 4, 2, 3, 3, generator=generator, dtype=torch.float64)


def quantizer(options):
    return LFQ(2**6, temperature=0.5, **options)


def losses(encode, lfq, x, names):
    """Each term, and the gradients of their weighted sum in the encoder's parameters."""
    terms, weights = lfq.loss_terms(encode(x)), lfq.loss_weights(0)
    encode.zero_grad()
    sum(terms[name] * weights[name] for name in names).backward()
    values = {name: term.item() for name, term in terms.items()}
    return values, [p.grad.clone() for p in encode.parameters()]


def main(rank, rendezvous, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    found = {}
    for case, (options, counts, names) in CASES.items():
        lfq = quantizer(options)
        encode = DistributedDataParallel(encoder(lfq.latent_dim))
        found[case] = losses(encode, lfq, samples(counts).split(counts)[rank], names)
    if rank == 0:
        # Validation by one process alone: would wait for the other for ever.
        lfq = quantizer({}).eval()
        x = samples((3, 3))[:3]
        found["eval"] = losses(encoder(lfq.latent_dim), lfq, x, ("codebook_entropy",))
    torch.save(found, f"{out}.{rank}")
    dist.barrier()
    dist.destroy_process_group()

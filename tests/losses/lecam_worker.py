"""One of two gloo processes: its share of the logits of each step."""

import torch
import torch.distributed as dist

from magvit2_pytorch.losses.adversarial import LeCamRegularizer

CASES = {
    # Samples of each process.
    "equal": (3, 3),
    "unequal": (4, 1),
}


def steps(counts, num_steps=3):
    """Logits of real and fake of all processes, step by step."""
    generator = torch.Generator().manual_seed(2)
    count = sum(counts)
    return [
        tuple(torch.randn(count, 1, 2, generator=generator) + side for side in (1, -1))
        for _ in range(num_steps)
    ]


def main(rank, rendezvous, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    found = {}
    for case, counts in CASES.items():
        lecam = LeCamRegularizer(decay=0.9)
        for real, fake in steps(counts):
            lecam.update(real.split(counts)[rank], fake.split(counts)[rank])
        found[case] = lecam.state_dict()
    if rank == 0:
        # One process alone, validating or told so: would wait for the other for ever.
        for name, alone in (
            ("eval", LeCamRegularizer(decay=0.9).eval()),
            ("off", LeCamRegularizer(decay=0.9, distributed=False)),
        ):
            alone.update(*(logits[:3] for logits in steps((3, 3))[0]))
            found[name] = alone.state_dict()
    torch.save(found, f"{out}.{rank}")
    dist.barrier()
    dist.destroy_process_group()

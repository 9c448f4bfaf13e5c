"""One of two gloo processes: its share of the latents moves the codebooks of both."""

import torch
import torch.distributed as dist

from magvit2_pytorch.quantizers.vector import VectorQuantizer

TYPES = ("vq", "residual")


def latents(step):
    values = torch.randn(4, 6, 3, 4, 5, generator=torch.Generator().manual_seed(step))
    return values.requires_grad_()


def quantizer(vq_type):
    torch.manual_seed(0)
    return VectorQuantizer(6, 32, vq_type, num_levels=3)


def main(rank, rendezvous, out):
    torch.set_num_threads(1)
    # Built before the processes know of each other, as by users.
    quantizers = {vq_type: quantizer(vq_type) for vq_type in TYPES}
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    states = {}
    for vq_type, module in quantizers.items():
        for step in range(3):
            module.loss_terms(latents(step).split((3, 1))[rank])
        # Not finite in one of them: both leave the batch out.
        module.loss_terms(latents(3) * (float("nan") if rank == 1 else 1.0))
        states[vq_type] = module.state_dict()
    if rank == 0:
        # Evaluation by one process alone: would wait for the other for ever.
        module.eval().loss_terms(latents(0))
    torch.save(states, f"{out}.{rank}")
    dist.barrier()
    dist.destroy_process_group()

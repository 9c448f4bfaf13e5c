"""One of two gloo processes that measure latents together; what each stored goes to a file."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))
from magvit2_pytorch.training.latent_statistics import measure_latents
from tests.conftest import build
from tests.training.conftest import clips

NUM_CLIPS = (7, 1)
"""An odd number, and too few for two."""


def measure(num_clips):
    torch.manual_seed(0)
    tokenizer = build("compress_space", "compress_time", quantizer="continuous-kl")
    measure_latents(tokenizer, clips(num_clips))
    return tokenizer.quantizer.state_dict()


def main(rank, rendezvous, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    torch.save([measure(number) for number in NUM_CLIPS], f"{out}.{rank}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])

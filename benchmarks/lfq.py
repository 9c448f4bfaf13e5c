"""Entropy losses of lookup-free quantization, forward and backward: time and memory.

    python benchmarks/lfq.py

5,120 tokens of 10 to 20 bits, and beside it vector-quantize-pytorch's LFQ where its table of all
token-code affinities fits a gigabyte. Medians; each size in a fresh process.
"""

import argparse
import json
import subprocess
import sys
import time
from statistics import median

NUM_TOKENS = 5120
LIBRARY = "vector-quantize-pytorch"


def peak_kb(name: str) -> int:
    """VmRSS (held now) or VmHWM (the peak) of this process, as Linux counts them."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))


def measure(implementation: str, num_bits: int, repeat: int) -> dict:
    import torch

    def ours():
        latents = torch.randn(1, num_bits, 20, 16, 16) * 0.02
        terms = lfq.loss_terms(latents.requires_grad_())
        sum(terms.values()).backward()

    def library():
        latents = torch.randn(1, NUM_TOKENS, num_bits) * 0.02
        lfq(latents.requires_grad_()).entropy_aux_loss.backward()

    if implementation == LIBRARY:
        from vector_quantize_pytorch import LFQ

        lfq = LFQ(codebook_size=2**num_bits, dim=num_bits, entropy_loss_weight=1.0).train()
        run = library
    else:
        from magvit2_pytorch.quantizers import LFQ

        lfq, run = LFQ(2**num_bits), ours
    torch.randn(64, 64, requires_grad=True).square().sum().backward()
    before = peak_kb("VmRSS")
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return {"s": median(seconds), "mb": (peak_kb("VmHWM") - before) / 1024}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args.repeat)))
        return
    print("| bits | ours | extra memory | vector-quantize-pytorch | extra memory |")
    print("| --- | --- | --- | --- | --- |")
    for num_bits in (10, 12, 14, 16, 18, 20):
        cells = []
        for implementation in ("ours", LIBRARY):
            if implementation == LIBRARY and NUM_TOKENS * 2**num_bits * 4 > 2**30:
                cells.append("more than 1 GB a tensor | -")
                continue
            repeat = args.repeat if implementation == "ours" else 3
            command = [sys.executable, __file__, "--repeat", str(repeat)]
            command += ["--one", implementation, str(num_bits)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result = json.loads(done.stdout.splitlines()[-1])
            cells.append(f"{result['s']:.3f} s | {result['mb']:.0f} MB")
        print(f"| {num_bits} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()

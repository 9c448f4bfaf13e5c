"""What each layer costs, to choose layers by: weights, arithmetic, memory to train, time.

    python benchmarks/layer_costs.py

Each layer by itself, its encoder and its decoder module, on a grid as in the middle of a network:
one clip, 128 channels, 17 frames of 32 x 32; layers that change the grid keep the channels.
Arithmetic is that of a forward pass, two operations to a multiplication. Activations are what a
training step keeps for its backward pass, in float32. Time is of forward and backward under bf16
autocast, the layers taking turns; medians.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from magvit2_pytorch.layers.norm import NormSpec
from magvit2_pytorch.tokenizer.layer_spec import LAYERS, Grid, LayerOptions, parse_layer
from magvit2_pytorch.types import Context

DIM, FRAMES, SIDE = 128, 17, 32
DIM_COND = 64


def entry(name: str) -> tuple:
    """As written in `layers`, with the parameters it has to have."""
    if "compress" in name:
        return (name, DIM)
    return (name, 1) if name.startswith(("consecutive", "factorized", "magvit2")) else (name,)


def towers(name: str) -> nn.ModuleList:
    """The encoder's and the decoder's module of a layer."""
    norm = "group" if name.startswith("magvit2") else "layer"
    options = LayerOptions(quantized_dim=16, dim_cond=DIM_COND, norm=NormSpec(norm, 32))
    return nn.ModuleList(parse_layer(entry(name)).build(Grid(DIM), options))


def run(modules: nn.ModuleList, x: Tensor, context: Context) -> Tensor:
    """There and back."""
    for module in modules:
        x, _ = module(x, None, context)
    return x


def kept_bytes(modules: nn.ModuleList, x: Tensor, context: Context) -> int:
    """What the backward pass keeps: each storage once, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in modules.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run(modules, x, context)  # alive until all are counted: no address comes twice
        del out
    return sum(storages.values())


def seconds(modules: nn.ModuleList, x: Tensor, context: Context) -> float:
    """Of one forward and backward pass under bf16 autocast."""
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        out = run(modules, x, context)
    out.float().square().mean().backward()
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()

    torch.manual_seed(0)
    x = torch.randn(1, DIM, FRAMES, SIDE, SIDE).contiguous(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    latents = torch.randn(1, 16, FRAMES, SIDE, SIDE)
    context = Context(cond=torch.randn(1, DIM_COND), latents=latents)
    layers = {name: towers(name).train() for name in LAYERS}
    times: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(args.repeat + 1):
        for name, modules in layers.items():
            times[name].append(seconds(modules, x, context))

    print("| layer | weights | GFLOP | activations kept | time |")
    print("| --- | --- | --- | --- | --- |")
    for name, modules in layers.items():
        weights = sum(parameter.numel() for parameter in modules.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(modules, x.detach(), context)
        kept = kept_bytes(modules, x, context)
        median = statistics.median(times[name][1:])  # the first one warms up
        print(
            f"| `{name}` | {weights / 1e3:,.0f} k | {counter.get_total_flops() / 1e9:.1f} | "
            f"{kept / 2**20:.0f} MB | {median * 1e3:.0f} ms |"
        )


if __name__ == "__main__":
    main()

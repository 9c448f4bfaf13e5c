"""How fast this machine can convolve at all: the most FLOP/s of any of some usual shapes.

    python benchmarks/conv_peak.py

Causal 3 x 3 x 3 convolutions over channels-last video, in fp32 and bf16, medians of five. The last
line is JSON, for the benchmarks that say what share of this peak a whole network reaches.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from statistics import median

import torch
from torch.nn import functional as F

SHAPES = [(64, 9, 64), (128, 5, 64), (256, 5, 32), (512, 5, 32), (128, 17, 32)]
"""Channels, frames, and pixels to a side."""


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def flops_per_s(
    channels: int, frames: int, size: int, repeat: int, dtype: torch.dtype, device: torch.device
) -> float:
    memory, kind = dict(memory_format=torch.channels_last_3d), dict(dtype=dtype, device=device)
    x = torch.randn(1, channels, frames, size, size, **kind).contiguous(**memory)
    weight = torch.randn(channels, channels, 3, 3, 3, **kind).contiguous(**memory)
    seconds = []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        out = F.conv3d(x, weight, padding=(0, 1, 1))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * 27 * channels * out.numel() / median(seconds[1:])


def conv_peak(
    repeat: int = 5,
    dtypes: Mapping[str, torch.dtype] = DTYPES,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    device: torch.device = torch.device("cpu"),
) -> dict[str, float]:
    """FLOP/s in each precision."""
    return {
        name: max(flops_per_s(*shape, repeat, dtype, device) for shape in shapes)
        for name, dtype in dtypes.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    with torch.inference_mode():
        peak = conv_peak(parser.parse_args().repeat)
    for name, value in peak.items():
        print(f"{name}: {value / 1e12:.3f} TFLOP/s")
    print(json.dumps(peak))

"""`vidtok-fsq-488` beside the same network in plain PyTorch, as its authors structure it.

    python benchmarks/vidtok.py

Plain PyTorch is `tests/vidtok.py`: frames folded into the batch for convolutions over space,
positions for those over time. Both have the same random weights and compute the same numbers, whole
clips, no tiles. Medians over rounds that take turns in fresh processes.
"""

import argparse
import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from side_by_side import OURS, measure, take_turns

THEIRS = "plain PyTorch"


def operation(implementation: str, name: str, shape, video):
    """Encoding or decoding, as a function without arguments, and the number of parameters."""
    from tests import vidtok as plain

    state = plain.made_state(shape)
    num_parameters = sum(tensor.numel() for tensor in state.values())
    latents = torch.zeros(
        1, shape.z, 1 + (video.shape[2] - 1) // 4, *(n // 8 for n in video.shape[3:])
    )
    if implementation == THEIRS:
        encode, decode = (partial(half, state, shape) for half in (plain.encode, plain.decode))
    else:
        from magvit2_pytorch.convert.conversion import tokenizer_from_state

        options = dict(levels=(8,) * shape.z, vidtok_version=shape.version)
        tokenizer = tokenizer_from_state(state, **options)
        encode, decode = tokenizer.encode, tokenizer.decode
    run = partial(encode, video) if name == "encode" else partial(decode, latents)
    return run, num_parameters


def worker(args):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.vidtok import Shape

    torch.manual_seed(0)
    shape = Shape(args.dim, (1, 2, 4, 4), num_units=2, z=6, version="1.0", linear=False)
    video = torch.rand(1, 3, args.frames, args.size, args.size) * 2 - 1
    run, num_parameters = operation(*args.worker, shape, video)
    bf16 = args.precisions[0] == "bf16"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        result = measure(run, args.repeat)
    print(json.dumps(result | dict(parameters=num_parameters)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("worker", nargs="*", help="for processes that this one starts")
    parser.add_argument("--precisions", nargs="+", default=("fp32", "bf16"))
    parser.add_argument("--dim", type=int, default=128, help="channels of the first level")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    options = [
        word for name in ("dim", "frames", "size", "repeat")
        for word in (f"--{name}", str(getattr(args, name)))
    ]  # fmt: skip
    tasks = [
        (name, *options, "--precisions", precision)
        for name in ("encode", "decode")
        for precision in args.precisions
    ]
    pythons = dict.fromkeys((OURS, THEIRS), sys.executable)
    cells = take_turns(pythons, "vidtok.py", tasks, args.rounds)
    print(f"{cells[OURS, tasks[0]].parameters / 1e6:.1f} M parameters\n")
    print(f"| | precision | here | {THEIRS} | faster | memory here | there |")
    print("| --- " * 7 + "|")
    for task in tasks:
        mine, other = (cells[name, task] for name in pythons)
        print(
            f"| {task[0]} | {task[-1]} | {mine.median_s:.2f} s | {other.median_s:.2f} s | "
            f"{other.median_s / mine.median_s:.2f}x | {mine.memory} | {other.memory} |"
        )


if __name__ == "__main__":
    main()

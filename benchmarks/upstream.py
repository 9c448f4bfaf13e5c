"""Side by side with magvit2-pytorch 0.5.1: encode, decode, training step, memory.

    python benchmarks/upstream.py
    python benchmarks/upstream.py --config small --batch 2 --operations adversarial
    python benchmarks/upstream.py --config small --operations encode --sizes 256 --frames 17 65 129

Both build the layers of that project's README, 64 channels wide (`readme`) or 16 (`small`), for 17
frames of 128 x 128 (64 x 64), if not said otherwise, in batches of one. `adversarial` is a step of
the tokenizer and one of a frame discriminator, each implementation's own default, without gradient
penalty. With `--stream`, ours passes the video through a stream, 16 frames at a time.

Every figure is the median over rounds that take turns, each in a fresh process; memory is the peak
of the process, "beyond torch" that less what importing torch takes. "of peak" is the share of this
machine's convolution peak (conv_peak.py, measured in the same run) that ours reaches over the whole
operation. The other implementation is installed into a virtual environment of its own, which stays
in benchmarks/.venv-upstream for the next time.
"""

import argparse
import sys

from conv_peak import DTYPES, conv_peak
from side_by_side import OURS, environment, take_turns

OTHER = "magvit2-pytorch 0.5.1"
OPERATIONS = ("encode", "decode", "train", "adversarial")
SIZES = {"readme": 128, "small": 64}
SWITCHES = ("stream", "compile", "checkpoint_activations")
"""Of ours only."""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream_python", help="an interpreter that has magvit2-pytorch 0.5.1")
    parser.add_argument("--config", choices=tuple(SIZES), default="readme")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=OPERATIONS[:3])
    parser.add_argument("--precisions", nargs="+", default=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--frames", type=int, nargs="+", default=(17,))
    parser.add_argument("--sizes", type=int, nargs="+", help="pixels to a side")
    parser.add_argument("--stream", action="store_true", help="ours in pieces of 16 frames")
    parser.add_argument("--compile", action="store_true", help="ours compiled")
    parser.add_argument("--checkpoint_activations", action="store_true", help="ours, in training")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    python = args.upstream_python or environment("upstream", OTHER.replace(" ", "=="))
    pythons = {OURS: sys.executable, OTHER: python}

    def task(operation: str, size: int, frames: int, precision: str) -> tuple[str, ...]:
        options = dict(config=args.config, batch=args.batch, repeat=args.repeat)
        options |= dict(size=size, frames=frames, precision=precision)
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        switches = [name for name in SWITCHES if getattr(args, name)]
        return (operation, *flags, *(f"--{name}" for name in switches))

    cases = [
        (operation, size, frames, precision)
        for operation in args.operations
        for size in args.sizes or [SIZES[args.config]]
        for frames in args.frames
        for precision in args.precisions
    ]
    peak = conv_peak(dtypes={name: DTYPES[name] for name in args.precisions})
    cells = take_turns(pythons, "upstream_worker.py", [task(*case) for case in cases], args.rounds)

    for name in pythons:
        print(f"{name}: {cells[name, task(*cases[0])].parameters / 1e6:.1f} M parameters")
    peaks = ", ".join(f"{value / 1e12:.2f} {name}" for name, value in peak.items())
    print(f"convolution peak in TFLOP/s: {peaks}")
    columns = ["", "size", "frames", "precision", "here", "frames/s", "of peak", OTHER, "faster"]
    columns += ["than its fp32", "memory here", "there", "beyond torch here", "there"]
    print("\n| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for operation, size, frames, precision in cases:
        mine, other = (cells[name, task(operation, size, frames, precision)] for name in pythons)
        base = cells.get((OTHER, task(operation, size, frames, "fp32")))
        share = mine.flops / mine.median_s / peak[precision]
        faster = "" if other.failure else f"{other.median_s / mine.median_s:.2f}x"
        than_fp32 = "" if not base or base.failure else f"{base.median_s / mine.median_s:.2f}x"
        print(
            f"| {operation} | {size} | {frames} | {precision} | {mine.median_s:.2f} s | "
            f"{frames * args.batch / mine.median_s:.1f} | {f'{share:.0%}' if share else ''} | "
            f"{'' if other.failure else f'{other.median_s:.2f} s'} | {faster} | {than_fp32} | "
            f"{mine.memory} | {other.memory} | {mine.beyond_torch} | {other.beyond_torch} |"
        )


if __name__ == "__main__":
    main()

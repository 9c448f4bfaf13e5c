"""Side by side with magvit2-pytorch 0.5.1: encode, decode, training step, memory.

    python benchmarks/upstream.py
    python benchmarks/upstream.py --config small --batch 2 --operations adversarial

Both build the configuration of that project's README (17 frames of 128 x 128, batch 1), or a small
one of 64 x 64. `adversarial` is a step of the tokenizer and one of a frame discriminator, each
implementation's own default, without gradient penalty. Every figure is the median over rounds
that take turns, each in a fresh process; memory is the peak of the process. The other
implementation is installed into a virtual environment of its own, which stays in
benchmarks/.venv-upstream for the next time.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
OTHER = "magvit2-pytorch 0.5.1"
OPERATIONS = ("encode", "decode", "train", "adversarial")


def other_python(given: str | None) -> str:
    """The interpreter that has the other implementation; made on first use."""
    if given:
        return given
    folder = HERE / ".venv-upstream"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "-q", OTHER.replace(" ", "==")]
        subprocess.run(install, check=True)
    return str(python)


def measure(python: str, implementation: str, operation: str, *options: str) -> dict:
    worker = str(HERE / "upstream_worker.py")
    command = [python, worker, implementation, operation, *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream_python", help="an interpreter that has magvit2-pytorch 0.5.1")
    parser.add_argument("--config", choices=("readme", "small"), default="readme")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=OPERATIONS[:3])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    pythons = {"ours": sys.executable, OTHER: other_python(args.upstream_python)}

    cells = {}
    for operation in args.operations:
        for round_number in range(args.rounds):
            for precision in ("fp32", "bf16"):
                for implementation, python in pythons.items():
                    options = ("--config", args.config, "--precision", precision)
                    counts = ("--repeat", str(args.repeat), "--batch", str(args.batch))
                    result = measure(python, implementation, operation, *options, *counts)
                    cell = cells.setdefault((operation, implementation, precision), [])
                    cell.append(result)
                    seconds = ", ".join(f"{s:.2f}" for s in result["seconds"])
                    print(
                        f"{operation} {implementation} {precision} round {round_number}: "
                        f"{seconds} s, {result['peak_mb']:.0f} MB",
                        file=sys.stderr,
                    )

    def seconds(*key):
        return median(s for result in cells[key] for s in result["seconds"])

    def memory(*key):
        return median(result["peak_mb"] for result in cells[key])

    for implementation in pythons:
        count = cells[args.operations[0], implementation, "fp32"][0]["parameters"]
        print(f"{implementation}: {count / 1e6:.1f} M parameters")
    print("\n| | precision | ours | magvit2-pytorch 0.5.1 | faster | than its fp32 | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for operation in args.operations:
        for precision in ("fp32", "bf16"):
            ours, theirs = (operation, "ours", precision), (operation, OTHER, precision)
            mine, other = seconds(*ours), seconds(*theirs)
            base = seconds(operation, OTHER, "fp32")
            print(
                f"| {operation} | {precision} | {mine:.2f} s | {other:.2f} s | "
                f"{other / mine:.2f}x | {base / mine:.2f}x | "
                f"{memory(*ours):.0f} / {memory(*theirs):.0f} MB |"
            )


if __name__ == "__main__":
    main()

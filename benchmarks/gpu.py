"""One borrowed GPU, ten minutes: everything to learn from it, as JSON and as a page.

    python benchmarks/gpu.py -o gpu-results
    python benchmarks/gpu.py --only speed training --minutes 5
    python benchmarks/gpu.py --device cpu --short

Parts, in order: peaks of the card; tests marked `gpu`; codes of the GPU beside the CPU's in each
precision; encode, decode and training step of presets; frames of 720p in tiles; diffusers'
CogVideoX, Wan and Cosmos and magvit2-pytorch 0.5.1, where installed; training of `magvit2-small` on
the demo's clips; compiled models. Each part runs in a process of its own, with a share of the time;
what a part leaves, later ones may use. A case that fails, or has no time or no package, is a row
that says why. Weights are random; TFLOP of a training step are three times those of encode and
decode. "of peak" is the share of the fastest matrix product or convolution of the same precision.
`--short` tries all parts with tiny models.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gpu_parts
import torch
from equal_time import markdown
from gpu_parts import ROOT, UPSTREAM, Bench

GRACE_S = 20
"""Beyond its time a part may finish a case that it has begun; then it is ended."""
SECONDS = dict(
    peaks=15,
    tests=50,
    agreement=40,
    speed=130,
    tiles=50,
    others=45,
    upstream=40,
    training=150,
    compiled=80,
)
"""Of each part, in ten minutes; the names are those of functions in `gpu_parts`."""


def missing(name: str, args: argparse.Namespace) -> str:
    """Why a part cannot run at all, else ""."""
    if name == "others" and find_spec("diffusers") is None:
        return "diffusers is not installed"
    if name == "upstream" and args.upstream_python is None:
        return f"no --upstream_python, an interpreter that has {UPSTREAM}"
    needed = {"tests": "pytest", "training": "skvideo"}.get(name)
    return "" if needed is None or find_spec(needed) else f"{needed} is not installed"


def run_part(name: str, seconds: float, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of a part that ran in a process of its own; the last one says if it failed."""
    if reason := missing(name, args):
        return [{"skipped": reason}]
    path = args.output / f"{name}.json"
    path.unlink(missing_ok=True)
    theirs = name == "upstream"
    command = [args.upstream_python if theirs else sys.executable, __file__, "--part", name]
    command += ["--device", args.device, "--minutes", f"{seconds / 60}", "-o", str(args.output)]
    path_of_modules = {} if theirs else {"PYTHONPATH": str(ROOT)}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | path_of_modules
    with (args.output / f"{name}.log").open("w") as log:
        try:
            code = subprocess.run(
                command + ["--short"] * args.short,
                env=environment, stdout=log, stderr=log, timeout=seconds + GRACE_S,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = "time over"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return rows + ([{"skipped": f"ended: {code}, see {name}.log"}] if code else [])


def facts(device: torch.device) -> dict[str, Any]:
    """Card and software."""
    found = dict(device=platform.machine(), torch=torch.__version__)
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= dict(device=card.name, memory_GB=round(card.total_memory / 2**30))
        found |= dict(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    return found


def page(results: dict[str, Any]) -> str:
    """Markdown: a table for each part, with shares of the card's peak."""
    peak = {
        row["precision"]: max(row["matrix product"], row["conv"])
        for row in results["parts"].get("peaks", [])
        if "conv" in row
    }
    said = ", ".join(f"{name} {value}" for name, value in results["facts"].items())
    lines = [f"# {results['facts']['device']}", "", said]
    for name, rows in results["parts"].items():
        for row in rows:
            if "TFLOP/s" in row and row["precision"] in peak:
                row["of peak"] = f"{row['TFLOP/s'] / peak[row['precision']]:.0%}"
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[row.get(column, "") for column in columns] for row in rows]
        about = getattr(gpu_parts, name).__doc__.splitlines()[0]
        lines += ["", f"## {name}", "", about, "", markdown(columns, cells)]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu-results"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", nargs="+", choices=tuple(SECONDS), default=tuple(SECONDS))
    parser.add_argument("--short", action="store_true", help="tiny models, to try the command")
    parser.add_argument("--upstream_python", help=f"an interpreter that has {UPSTREAM}")
    parser.add_argument("--part", choices=tuple(SECONDS), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    device, deadline = torch.device(args.device), time.monotonic() + args.minutes * 60
    args.output.mkdir(parents=True, exist_ok=True)
    if args.part:
        path = args.output / f"{args.part}.json"
        getattr(gpu_parts, args.part)(Bench(device, deadline, args.short, path))
        return
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU is visible here: --device cpu --short tries this command without one")
    results: dict[str, Any] = {"facts": facts(device), "parts": {}}
    shares = {name: share for name, share in SECONDS.items() if name in args.only}
    for name in list(shares):
        # What earlier parts left is this one's too; what later ones need is not.
        share = shares.pop(name)
        left = deadline - time.monotonic()
        seconds = left * share / (share + sum(shares.values()))
        results["parts"][name] = run_part(name, seconds, args)
        text = json.dumps(results, indent=1)
        (args.output / "results.json").write_text(text, encoding="utf-8")
        (args.output / "results.md").write_text(page(results), encoding="utf-8")
        print(f"{name}: {len(results['parts'][name])} rows", flush=True)
    print((args.output / "results.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

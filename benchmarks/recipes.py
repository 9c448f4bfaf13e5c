"""Time, memory and quality of the presets' recipes, measured here.

    python benchmarks/recipes.py curve tiny small
    python benchmarks/recipes.py step magvit2-small o2-image-small --batch_size 1
    python benchmarks/recipes.py table

`curve` trains by the recipe on the demo's clips, without those held out, and keeps PSNR of the
held-out frames over the steps. `step` takes a few steps on noise of the recipe's shape,
discriminators included, and keeps the median of their times and the peak of memory; presets that do
not fit are said to. Both write recipes.json, and `table` puts all of it into
examples/recipes/README.md.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from demo_training import train
from equal_time import markdown

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.atomic import replacing
from magvit2_pytorch.runtime import free_memory, peak_memory
from magvit2_pytorch.tokenizer.presets import PRESETS, recipe
from magvit2_pytorch.training.meters import Meters

RESULTS = Path(__file__).with_suffix(".json")
README = Path(__file__).parents[1] / "examples" / "recipes" / "README.md"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
NUM_TRAIN_STEPS = {"small": 750, "tiny": 1000}
"""Of recipes that leave the number to the user: enough for the demo's clips."""
NUM_STEPS = 3
"""That are timed, unless --steps says another number; one more goes before them."""
TOO_LITTLE_MEMORY = "can't allocate|not enough memory|out of memory|bad_alloc|MemoryError"


def training_options(name: str) -> dict[str, Any]:
    """The recipe, and how long it trains."""
    steps = NUM_TRAIN_STEPS.get(name)
    return recipe(name) | ({} if steps is None else dict(num_train_steps=steps))


def results() -> dict[str, dict[str, Any]]:
    """What was measured of each preset."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def machine(device: torch.device) -> str:
    """In words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return f"{torch.get_num_threads()} cores of {names[0] if names else 'a CPU'}"


def write(name: str, found: dict[str, Any]) -> None:
    """Adds to what is known of a preset."""
    known = results()
    known[name] = known.get(name, {}) | found
    text = json.dumps(known, indent=2)
    # A point of a curve is one line.
    text = re.sub(r"\[\s+([\d.]+),\s+([\d.]+),\s+([\d.]+)\s+\]", r"[\1, \2, \3]", text)
    with replacing(RESULTS) as part:
        part.write_text(text + "\n", encoding="utf-8")


def measure_curve(name: str, output: Path) -> None:
    """Trains by the recipe to its end."""
    training = training_options(name)
    torch.manual_seed(training.get("seed", 42))
    tokenizer = VideoTokenizer.from_preset(name)
    result = train(name, output / name, tokenizer, training)
    curve = dict(
        command=f"python benchmarks/recipes.py curve {name}",
        machine=machine(torch.device("cpu")),
        precision=result.precision,
        psnr_db=result.psnr_db,
        codes_used=result.codes_used,
        perplexity=result.perplexity,
        points=result.curve,
    )
    write(name, {"curve": curve})


def measure_step(
    name: str, batch_size: int | None, checkpoint_activations: bool, num_steps: int = NUM_STEPS
) -> None:
    """A few steps of the recipe on noise."""
    options = training_options(name)
    if batch_size is not None:
        options |= dict(batch_size=batch_size)
    tokenizer = VideoTokenizer.from_preset(name)
    config = tokenizer.config
    num_frames = 1 if tokenizer.time_factor == 1 else options["num_frames"]
    shape = (options["batch_size"], config.channels, num_frames, *config.height_and_width)
    noise = torch.rand(shape) * 2 - 1
    with tempfile.TemporaryDirectory() as folder:
        trainer = VideoTokenizerTrainer(
            tokenizer,
            dataset=list(noise),
            valid_dataset=list(noise),
            checkpoint_activations=checkpoint_activations,
            results_folder=folder,
            checkpoints_folder=folder,
            **options,
        )
        device = trainer.accelerator.device
        batch, meters, seconds = noise.to(device), Meters(trainer.task), []
        for _ in range(1 + num_steps):
            started = time.perf_counter()
            trainer.train_step(iter([batch]), meters)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
        discriminators = sum(
            p.numel() for d in trainer.discriminators for p in d.network.parameters()
        )
    step = dict(
        machine=machine(device),
        precision=trainer.config.precision,
        batch_size=options["batch_size"],
        checkpoint_activations=checkpoint_activations,
        timed_steps=num_steps,
        seconds=round(median(seconds[1:]), 3),
        peak_gb=round(peak_memory(device) / 1e9, 2),
        discriminator_parameters=discriminators,
    )
    write(name, {"step": step})


def measure_step_apart(
    name: str, batch_size: int | None, checkpoint_activations: bool, num_steps: int = NUM_STEPS
) -> None:
    """In a process that cannot take more memory than is free; too little is a result."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    limit_gb = 0.95 * free_memory(device) / 1e9
    command = [sys.executable, __file__, "step", name, "--steps", str(num_steps)]
    command += [] if batch_size is None else ["--batch_size", str(batch_size)]
    command += ["--checkpoint_activations"] if checkpoint_activations else []
    command += [] if device.type == "cuda" else ["--limit_gb", str(limit_gb)]
    done = subprocess.run([*command, "--here"], stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return
    if not re.search(TOO_LITTLE_MEMORY, done.stderr):
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    step = dict(
        machine=machine(device),
        batch_size=batch_size or training_options(name)["batch_size"],
        checkpoint_activations=checkpoint_activations,
        seconds=None,
        more_than_gb=round(limit_gb, 1),
    )
    write(name, {"step": step})


def limit_memory(gigabytes: float) -> None:
    """Of this process, so that it fails by itself and nothing else on the machine is killed."""
    import resource

    most = int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def duration(seconds: float) -> str:
    """In the largest unit of which there is one."""
    for unit, size in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def row(name: str, found: dict[str, Any]) -> list[str]:
    """What was measured of a preset, in the table's columns."""
    step, curve = found.get("step"), found.get("curve")
    cells = [f"`{name}`", "not measured", "", "", "", "none"]
    if step:
        thrift = " (activations computed twice)" if step["checkpoint_activations"] else ""
        cells[1:3] = [step["machine"], f"{step['batch_size']}{thrift}"]
        if step["seconds"] is None:
            cells[3:5] = [f"does not fit in {step['more_than_gb']} GB", ""]
        else:
            whole = step["seconds"] * training_options(name)["num_train_steps"]
            cells[3:5] = [f"{step['seconds']:.3g} s, {step['peak_gb']} GB", duration(whole)]
    if curve:
        last_step, seconds, decibels = curve["points"][-1]
        cells[5] = f"{decibels:.2f} dB after {last_step} steps, {duration(seconds)}"
    return cells


def table() -> str:
    """All results, in Markdown."""
    columns = ["preset", "machine", "batch", "a step", "all steps at this batch", "held-out PSNR"]
    known = results()
    return markdown(columns, [row(name, known.get(name, {})) for name in PRESETS])


def write_table() -> None:
    """Puts the table between the marks in the README of the recipes."""
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    with replacing(README) as part:
        part.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("curve", "step", "table"))
    parser.add_argument("presets", nargs="*", help="names, for curve and step")
    parser.add_argument("--batch_size", type=int, help="of a step, in place of the recipe's")
    parser.add_argument("--checkpoint_activations", action="store_true", help="in a step")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="to time, after a first one")
    parser.add_argument("--output", type=Path, default=Path("curves"), help="for runs of `curve`")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--limit_gb", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if (args.what == "table") == bool(args.presets):
        parser.error("curve and step need the names of presets, table takes none")
    if args.limit_gb:
        limit_memory(args.limit_gb)
    for name in args.presets:
        if args.here:
            measure_step(name, args.batch_size, args.checkpoint_activations, args.steps)
            return
        if args.what == "curve":
            measure_curve(name, args.output.resolve())
        else:
            measure_step_apart(name, args.batch_size, args.checkpoint_activations, args.steps)
    write_table()


if __name__ == "__main__":
    main()

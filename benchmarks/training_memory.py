"""Where the peak memory of a training step goes, each configuration in a process of its own.

    python benchmarks/training_memory.py
    python benchmarks/training_memory.py --configs small readme+checkpoint

The peak to explain is the highest resident memory that the kernel saw in two steps (VmHWM). In the
second one every tensor is counted while it lives, and what malloc has handed out is sampled: what
is handed out at most, beyond tensors, is workspace of the convolution library; what malloc holds
beyond that is slack. Every step has all losses of the recipe. Linux with glibc alone.
"""

import argparse
import ctypes
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from upstream_worker import CONFIGS, README_LAYERS

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.tokenizer.presets import recipe
from magvit2_pytorch.tokenizer.tiling import MemoryTracker
from magvit2_pytorch.training.meters import Meters

PRESETS = ("small", "magvit2-small")
NAMES = [name + end for name in ("small", "readme", "magvit2-small") for end in ("", "+checkpoint")]


class Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc: `hblkhd` mapped, `uordblks` in use, `fordblks` free in heaps."""

    names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")
    _fields_ = [(name, ctypes.c_size_t) for name in (*names, "uordblks", "fordblks", "keepcost")]


libc = ctypes.CDLL("libc.so.6")
libc.mallinfo2.restype = Mallinfo


def memory() -> dict[str, int]:
    """Bytes of this process now, and `VmHWM`, the most it has had."""
    info = libc.mallinfo2()
    found = {"used": info.uordblks + info.hblkhd, "free": info.fordblks}
    with open("/proc/self/status") as file:
        for line in file:
            name, *rest = line.split()
            if name[:-1] in ("VmRSS", "VmHWM", "RssFile", "RssAnon"):
                found[name[:-1]] = int(rest[0]) * 1024
    return found


class Sampler(threading.Thread):
    """The memory at its highest, and the most that malloc has handed out, while the block runs."""

    def __enter__(self) -> "Sampler":
        self.highest, self.over = memory(), threading.Event()
        self.most_used = self.highest["used"]
        self.start()
        return self

    def run(self) -> None:
        while not self.over.wait(0.002):
            now = memory()
            self.highest = max(self.highest, now, key=lambda memory: memory["VmRSS"])
            self.most_used = max(self.most_used, now["used"])

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.join()


class Census(MemoryTracker):
    """Also what the live tensors were at the peak, by kind."""

    def __init__(self, held: dict[str, Iterable[Tensor]], weights: list[Tensor]):
        super().__init__()
        self.kinds = {
            x.untyped_storage()._cdata: (kind, x.untyped_storage().nbytes())
            for kind, tensors in held.items()
            for x in tensors
        }
        self.weights, self.kept, self.sizes = weights, set(), {}
        self.most, self.at_peak = 0, Counter()

    def pack(self, tensor: Tensor) -> Tensor:
        self.kept.add(tensor.untyped_storage()._cdata)
        return tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        now = self.live
        if now > self.most:
            self.most, self.at_peak = now, self.by_kind()
            self.op = str(func)
        return out

    def by_kind(self) -> Counter:
        gradients = {p.grad.untyped_storage()._cdata for p in self.weights if p.grad is not None}
        sums = Counter()
        for kind, size in self.kinds.values():
            sums[kind] += size
        for key, size in self.sizes.items():
            kind = "kept for backward" if key in self.kept else "for a moment"
            sums["gradients" if key in gradients else kind] += size
        return sums

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.kinds:
            self.sizes[storage._cdata] = storage.nbytes()
            super()._add(storage)

    def _remove(self, key: int, size: int) -> None:
        super()._remove(key, size)
        self.sizes.pop(key, None)
        self.kept.discard(key)


def build(name: str, folder: str) -> tuple[VideoTokenizerTrainer, Tensor]:
    """A trainer and a batch of clips of 17 x 64 x 64."""
    name, checkpoint, _ = name.partition("+")
    torch.manual_seed(0)
    if name in PRESETS:
        tokenizer, options = VideoTokenizer.from_preset(name, image_size=64), recipe(name)
    else:
        tokenizer = VideoTokenizer(**CONFIGS["readme"], image_size=64, layers=README_LAYERS)
        options = {}
    batch_size, num_frames = {"small": (4, 17), "readme": (1, 17), "magvit2-small": (1, 9)}[name]
    video = torch.rand(batch_size, 3, num_frames, 64, 64) * 2 - 1
    options = options | dict(
        batch_size=batch_size,
        gradient_penalty_every=1,
        checkpoint_activations=bool(checkpoint),
        results_folder=folder,
        checkpoints_folder=f"{folder}/checkpoints",
    )
    clips = dict(dataset=list(video), valid_dataset=list(video))
    return VideoTokenizerTrainer(tokenizer, **clips, **options), video


def tensors_of(trainer: VideoTokenizerTrainer, video: Tensor) -> dict[str, list[Tensor]]:
    """What lives from step to step."""
    modules = [o.module for o in trainer.optimizations.values()]
    states = [list(x.state.values()) for o in trainer.optimizations.values() for x in o.optimizers]
    return {
        "weights": [x for m in modules for x in (*m.parameters(), *m.buffers())],
        "averages": [*trainer.ema.parameters(), *trainer.ema.buffers()],
        "moments": [value for value in tree_leaves(states) if isinstance(value, Tensor)],
        "batch": [video],
    }


def explain(name: str) -> None:
    import torch._dynamo  # as the first optimizer does

    base = memory()
    with tempfile.TemporaryDirectory() as folder:
        trainer, video = build(name, folder)
        meters = Meters(trainer.task)
        trainer.train_step(iter([video]), meters)
        weights = [p for o in trainer.optimizations.values() for p in o.module.parameters()]
        with (
            Census(tensors_of(trainer, video), weights) as census,
            torch.autograd.graph.saved_tensors_hooks(census.pack, lambda tensor: tensor),
            Sampler() as sampler,
        ):
            trainer.train_step(iter([video]), meters)
    highest, peak = sampler.highest, memory()["VmHWM"]
    parts = Counter({"torch and other imports": base["VmRSS"]}) + census.at_peak
    handed_out = sampler.most_used - base["used"]
    parts["workspace"] = handed_out - census.at_peak.total()
    parts["slack of malloc"] = highest["used"] + highest["free"] - base["free"] - sampler.most_used
    parts["code read later"] = highest["RssFile"] - base["RssFile"]
    print(f"{name}: peak {peak / 1e6:.0f} MB, peak of tensors in {census.op}")
    for part, size in parts.items():
        print(f"  {part:<24} {size / 1e6:7.1f} MB {size / peak:6.1%}")
    total = sum(parts.values())
    print(f"  {'sum':<24} {total / 1e6:7.1f} MB {total / peak:6.1%}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=NAMES, choices=NAMES)
    names = parser.parse_args().configs
    if len(names) == 1:
        explain(names[0])
        return
    for name in names:
        subprocess.run([sys.executable, __file__, "--configs", name], check=True)


if __name__ == "__main__":
    main()

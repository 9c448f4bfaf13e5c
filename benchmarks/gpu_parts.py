"""What `gpu.py` measures: each part is a function that adds rows to a `Bench`."""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from conv_peak import SHAPES, conv_peak

ROOT = Path(__file__).parents[1]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
DIFFUSERS = {
    "CogVideoX": ("AutoencoderKLCogVideoX", dict(block_out_channels=(8,) * 4, norm_num_groups=4)),
    "Wan": ("AutoencoderKLWan", dict(base_dim=8)),
    "Cosmos": (
        "AutoencoderKLCosmos",
        dict(encoder_block_out_channels=(8,) * 4, decode_block_out_channels=(8,) * 4),
    ),
}
"""Class, and options of a tiny one for `--short`."""
UPSTREAM = "magvit2-pytorch 0.5.1"


@dataclass
class Bench:
    """Device and time of one part, and the rows it has measured, which are written one by one."""

    device: torch.device
    deadline: float
    """Of `time.monotonic`."""
    short: bool
    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def case(self, **names: Any) -> Iterator[dict[str, Any]]:
        """A row to add figures to; it tells the reason if there are none."""
        row = names
        try:
            yield row
        except torch.OutOfMemoryError:
            row["skipped"] = "out of memory"
        except Exception as error:  # a row for it, and on to the next
            reason = next(iter(str(error).splitlines()), "")
            row["skipped"] = f"{type(error).__name__}: {reason}"[:150]
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.rows.append(row)
        self.path.write_text(json.dumps(self.rows, indent=1), encoding="utf-8")

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TimeoutError("no time left")

    def precisions(self, *names: str) -> list[str]:
        """Those of these that the device has; on a CPU, fp16 is a matter of patience."""
        return [n for n in names if self.device.type != "cpu" or n in ("fp32", "bf16")]

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, run: Callable[[], Any], frames: int, flops: float = 0.0) -> dict[str, Any]:
        """Median time, speed and peak memory of `run`; of a CPU no memory is told."""
        self.check_time()
        run()
        self.wait()
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds, started = [], time.perf_counter()
        repeat, limit_s = (1, 0) if self.short else (7, 2)
        while not seconds or (len(seconds) < repeat and time.perf_counter() - started < limit_s):
            begun = time.perf_counter()
            run()
            self.wait()
            seconds.append(time.perf_counter() - begun)
        median = statistics.median(seconds)
        found = {"ms": round(median * 1e3, 2), "frames/s": round(frames / median, 1)}
        if flops:
            found["TFLOP/s"] = round(flops / median / 1e12, 3)
        if on_gpu:
            found["memory MB"] = round(torch.cuda.max_memory_allocated(self.device) / 2**20)
        return found

    def video(self, frames: int, height: int, width: int | None = None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        video = torch.rand(1, 3, frames, height, width or height, generator=generator) * 2 - 1
        return video.to(self.device)


@contextmanager
def precision_of(name: str, device: torch.device) -> Iterator[None]:
    """fp32 without TF32, tf32, or autocast to bf16 or fp16."""
    tf32 = name != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    with torch.autocast(device.type, DTYPES[name]) if name in DTYPES else nullcontext():
        yield


def build(name: str, device: torch.device | str) -> Any:
    """A preset, or this library's network of the other one's README."""
    from upstream_worker import build as build_config

    from magvit2_pytorch import VideoTokenizer

    torch.manual_seed(0)
    if name == "readme":
        return build_config("ours", name, 128, use_gan=False).to(device)
    return VideoTokenizer.from_preset(name).to(device)


def flops_of(name: str, frames: int, height: int, width: int) -> dict[str, float]:
    """Operations of encode, decode and a training step, of tensors without values."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        tokenizer = build(name, "meta")
        latents, _ = tokenizer.encode_chunk(torch.empty(1, 3, frames, height, width), last=True)
        encode = counter.get_total_flops()
        tokenizer.decode(latents)
        both = counter.get_total_flops()
    return {"encode": encode, "decode": both - encode, "train": 3 * both}


def peaks(bench: Bench) -> None:
    """The fastest matrix product and convolution, TFLOP/s."""
    size, shapes = (256, [(16, 3, 8)]) if bench.short else (8192, SHAPES)
    for precision in bench.precisions("fp32", "tf32", "bf16", "fp16"):
        dtype = DTYPES.get(precision, torch.float32)
        with bench.case(precision=precision) as row, precision_of(precision, bench.device):
            matrix = torch.randn(size, size, device=bench.device, dtype=dtype)
            ms = bench.timed(lambda matrix=matrix: matrix @ matrix, 1)["ms"]
            conv = conv_peak(3, {precision: dtype}, shapes, bench.device)[precision]
            row["matrix product"] = round(2 * size**3 / max(ms, 0.01) / 1e9, 2)
            row["conv"] = round(conv / 1e12, 2)


def tests(bench: Bench) -> None:
    """Tests marked `gpu`, by their last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_devices.py"]
    with bench.case(tests="gpu") as row:
        limit = max(bench.deadline - time.monotonic(), 1)
        options = dict(cwd=ROOT, timeout=limit, capture_output=True, text=True)
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)
        row["result"] = (done.stdout or done.stderr).strip().splitlines()[-1]


def agreement(bench: Bench) -> None:
    """Codes and reconstructions of the device beside those of the CPU in float32."""
    from magvit2_pytorch.metrics import psnr

    frames, size = (5, 16) if bench.short else (17, 128)
    video = bench.video(frames, size)
    for name in ("tiny",) if bench.short else ("small", "magvit2-small"):
        tokenizer = build(name, "cpu").eval()
        with torch.no_grad():
            right = tokenizer.tokenize(video.cpu())
            recon = tokenizer.decode_from_code_indices(right).clamp(-1, 1)
        tokenizer.to(bench.device)
        for precision in bench.precisions("fp32", "tf32", "bf16", "fp16"):
            with (
                bench.case(model=name, precision=precision) as row,
                torch.no_grad(),
                precision_of(precision, bench.device),
            ):
                bench.check_time()
                codes = tokenizer.tokenize(video).cpu()
                decoded = tokenizer.decode_from_code_indices(right.to(bench.device)).cpu()
                row["codes the same"] = f"{float((codes == right).float().mean()):.3%}"
                decibels = psnr(decoded.float().clamp(-1, 1), recon)
                row["decoded, dB"] = round(float(decibels), 1)


def speed(bench: Bench, compiled: bool = False) -> None:
    """Encode, decode and training step of whole clips."""
    from upstream_worker import operation

    names = ("small", "readme", "magvit2-small", "magvit2", "o2")
    sizes, frames = ((16,), 5) if bench.short else ((128, 256), 17)
    precisions = bench.precisions("bf16", "tf32", *(() if compiled else ("fp32",)))
    tasks = ("encode",) if compiled and bench.short else ("encode", "decode", "train")
    for name, size in product(("tiny",) if bench.short else names, sizes):
        bench.check_time()
        flops = flops_of(name, frames, size, size)
        tokenizer, video = build(name, bench.device), bench.video(frames, size)
        if compiled:
            tokenizer.compile(**({"backend": "aot_eager"} if bench.short else {}))
        for precision, task in product(precisions, tasks):
            names = dict(model=name, size=size, precision=precision, task=task)
            with bench.case(**names) as row, precision_of(precision, bench.device):
                bench.check_time()
                autocast = precision if precision in DTYPES else "fp32"
                run = operation("ours", task, tokenizer, video, autocast, False)
                started = time.perf_counter()
                run()
                bench.wait()
                row["first call, s"] = round(time.perf_counter() - started, 2)
                row |= bench.timed(run, frames, flops[task])


def compiled(bench: Bench) -> None:
    """`speed` by `torch.compile`, whose first call compiles."""
    speed(bench, compiled=True)


def tiles(bench: Bench) -> None:
    """17 frames of 720p, whole and in tiles."""
    names = ("tiny",) if bench.short else ("small", "magvit2-small", "magvit2", "o2")
    frames, height, width = (5, 16, 32) if bench.short else (17, 720, 1280)
    video = bench.video(frames, height, width)
    for name in names:
        bench.check_time()
        tokenizer = build(name, bench.device).eval()
        codes = torch.zeros(1, *tokenizer.code_shape(frames, height, width), dtype=torch.long)
        runs = {
            "encode": (tokenizer.encode, video),
            "decode": (tokenizer.decode_from_code_indices, codes),
        }
        for tile_size, task in product((16 if bench.short else 256, "auto", None), runs):
            tile = "whole" if tile_size is None else tile_size
            with (
                bench.case(model=name, size=f"{width}x{height}", tile=tile, task=task) as row,
                torch.inference_mode(),
                precision_of("bf16", bench.device),
            ):
                run, x = runs[task]
                # Whole frames of tiled runs lie on the CPU.
                x = x.to(bench.device if tile_size is None else "cpu")
                row |= bench.timed(partial(run, x, tile_size=tile_size), frames)


def others(bench: Bench) -> None:
    """Other video autoencoders with random weights, in bf16."""
    import diffusers

    sizes, frames = ((32,), 5) if bench.short else ((128, 256), 17)
    for name, (class_name, tiny) in DIFFUSERS.items():
        torch.manual_seed(0)
        model = getattr(diffusers, class_name)(**(tiny if bench.short else {})).eval()
        model = model.to(bench.device, torch.bfloat16)
        for size, task in product(sizes, ("encode", "decode")):
            names = dict(model=f"diffusers {name}", size=size, precision="bf16", task=task)
            with bench.case(**names) as row, torch.inference_mode():
                x, run = bench.video(frames, size).bfloat16(), model.encode
                if task == "decode":
                    x, run = model.encode(x).latent_dist.mode(), model.decode
                row |= bench.timed(partial(run, x), frames)


def upstream(bench: Bench) -> None:
    """magvit2-pytorch 0.5.1 with the layers of its README; compare with `readme` in `speed`."""
    from upstream_worker import build as build_config
    from upstream_worker import operation

    for size, precision in product((128, 256), ("bf16", "fp32")):
        bench.check_time()
        tokenizer = build_config(UPSTREAM, "readme", size, use_gan=False).to(bench.device)
        for task in ("encode", "decode", "train"):
            names = dict(model=UPSTREAM, size=size, precision=precision, task=task)
            with bench.case(**names) as row, precision_of(precision, bench.device):
                video = bench.video(17, size)
                run = operation(UPSTREAM, task, tokenizer, video, precision, False)
                row |= bench.timed(run, 17)


def training(bench: Bench) -> None:
    """Training of `magvit2-small` on the demo's clips, by its recipe."""
    from demo_training import train

    from magvit2_pytorch.tokenizer.presets import recipe

    name, seconds = ("tiny", 2) if bench.short else ("magvit2-small", 120)
    seconds = max(min(seconds, bench.deadline - time.monotonic() - 15), 1)

    cpu, folder = bench.device.type == "cpu", bench.path.parent / "training"
    options = recipe(name) | dict(num_train_steps=1_000_000, max_duration_s=seconds)
    with bench.case(model=name, seconds=round(seconds)) as row:
        result = train(name, folder, build(name, "cpu"), options, num_points=1, cpu=cpu)
        row |= {"steps": result.steps, "steps/s": round(result.steps / result.seconds, 2)}
        row |= {"held-out dB": result.mean_psnr_db, "perplexity": result.perplexity}
        if not cpu:
            row["memory MB"] = round(torch.cuda.max_memory_allocated(bench.device) / 2**20)

"""Writes files of every kind in a process whose files may not grow; prints what came of each."""

import errno
import json
import resource
import warnings
from pathlib import Path

import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.codes.code_file import ShardName, ShardWriter, write_codes
from magvit2_pytorch.codes.code_header import CodedVideo, CodeHeader
from magvit2_pytorch.discriminators import build_discriminator
from magvit2_pytorch.discriminators.models import save_discriminator
from magvit2_pytorch.media.images import write_image
from magvit2_pytorch.media.video_writer import write_video
from magvit2_pytorch.training.checkpoints import save_state


def writers_of(folder: Path) -> dict:
    tokenizer = VideoTokenizer.from_preset("tiny")
    noise = torch.randint(0, 255, (40, 64, 64, 3), dtype=torch.uint8)
    codes = torch.zeros(100, 32, 32, dtype=torch.long)
    header = CodeHeader(
        tokenizer="x", fingerprint="y", digit_levels=(9,), num_codebooks=1, time_factor=1,
        space_factor=1,
    )  # fmt: skip
    video = CodedVideo(
        header=header, source="a", kind="video", num_frames=100, height=32, width=32, fps=25.0,
        shape=tuple(codes.shape),
    )  # fmt: skip
    shard = ShardWriter(folder, ShardName(0, 0, 0), 10**9)
    shard.add(codes, video)
    return {
        **{s: lambda s=s: write_video(folder / f"a.{s}", noise, 25) for s in ("mp4", "mkv", "gif")},
        "png": lambda: write_image(folder / "a.png", noise.flatten(0, 1)),
        "jpg": lambda: write_image(folder / "a.jpg", noise.flatten(0, 1)),
        "codes": lambda: write_codes(folder / "a.codes.safetensors", codes, video),
        "shard": shard.flush,
        "tokenizer": lambda: tokenizer.save_pretrained(folder / "tokenizer"),
        "checkpoint": lambda: save_state(folder / "step-1", tokenizer.state_dict(), {}),
        "discriminator": lambda: save_discriminator(
            build_discriminator("frame", dim=32), folder / "d.safetensors"
        ),
    }


def main(folder: str) -> None:
    warnings.simplefilter("ignore")
    folder = Path(folder)
    writers = writers_of(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    results = {}
    for name, write in writers.items():
        try:
            write()
            results[name] = "no error"
        except OSError as error:
            full = errno.errorcode[errno.EFBIG] if "too large" in str(error) else str(error)
            left = [str(path) for path in folder.rglob("*") if path.is_file()]
            results[name] = [full, left, "\n" in str(error)]
    print(json.dumps(results))

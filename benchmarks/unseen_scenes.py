"""`small` on scenes that it was never trained on: each of the demo's clips after the two others.

    python benchmarks/unseen_scenes.py --minutes 4.5 -o unseen
    python benchmarks/unseen_scenes.py --minutes 4.5 -o unseen --training '{"color_jitter_frac": 0}'

Trains by the recipe with these changes, once for each clip, and measures windows of 17 frames among
the last 113 of the clip that it has not seen. Results that are there already are kept.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from equal_time import markdown

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.atomic import replace_json
from magvit2_pytorch.evaluation.demo_run import demo_clips, held_out_clips, train_demo
from magvit2_pytorch.metrics.quality import block_edges, psnr

LAST_FRAMES, STARTS, WINDOW = 113, (0, 32, 64, 96), 17
SEED = 42


def train_without(
    number: int, folder: Path, minutes: float, model: dict[str, Any], training: dict[str, Any]
) -> dict[str, Any]:
    """Trains on all clips but this one, and measures on it."""
    torch.manual_seed(SEED)
    tokenizer = VideoTokenizer.from_preset("small", **model)
    paths = demo_clips()
    unseen = paths.pop(number)
    trainer = train_demo(tokenizer, paths, folder, minutes, **training)
    clip = held_out_clips([unseen], num_frames=LAST_FRAMES)[0][None]
    values = []
    for start in STARTS:
        real = clip[:, :, start : start + WINDOW].to(trainer.accelerator.device)
        with torch.no_grad():
            recon = trainer.ema_tokenizer(real).clamp(-1, 1)
        edges = block_edges(recon, trainer.ema_tokenizer.config.patch[1])
        values.append((float(psnr(recon, real)), float(edges)))
    means = [round(sum(column) / len(column), 3) for column in zip(*values, strict=True)]
    return dict(scene=unseen.stem, steps=trainer.step, psnr_db=means[0], block_edges=means[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=4.5, help="of training, for each scene")
    parser.add_argument("--model", type=json.loads, default={}, help="options of the tokenizer")
    parser.add_argument("--training", type=json.loads, default={}, help="options of training")
    parser.add_argument("-o", "--output", type=Path, default=Path("unseen"))
    args = parser.parse_args()
    changes = {"minutes": args.minutes} | args.model | args.training
    name = "-".join(f"{key}={value}".replace("/", "_") for key, value in changes.items())
    rows = []
    for number, path in enumerate(demo_clips()):
        folder = args.output.resolve() / name / path.stem
        if not (folder / "result.json").exists():
            result = train_without(number, folder, args.minutes, args.model, args.training)
            replace_json(folder / "result.json", result)
        rows.append(json.loads((folder / "result.json").read_text("utf-8")))
    mean = round(sum(row["psnr_db"] for row in rows) / len(rows), 3)
    print(markdown(list(rows[0]), [*(list(row.values()) for row in rows), ["mean", "", mean, ""]]))


if __name__ == "__main__":
    main()

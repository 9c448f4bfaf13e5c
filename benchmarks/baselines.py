"""One table: `small`, other projects' networks and frames one by one, after equal training.

    python benchmarks/baselines.py --minutes 4.5 -o baselines
    python benchmarks/baselines.py --minutes 4.5 -o baselines --only fsq per-frame
    python benchmarks/baselines.py --minutes 60 -o baselines --only fsq o2 --parallel 2

Everyone trains for the same time on the same machine and the same clips, those of `magvit2 demo`
(17 x 64 x 64 crops of frames with a short side of 128 pixels, half of them mirrored, in batches of
four; without the recipe's new colours), in bf16 where the machine is fast at it, and codes and
decodes the same held-out frames at full size. Held-out PSNR over time is kept with each result;
rows that are there already are not trained again. With --parallel, each of so many rows at once
has one core.

- fsq, lfq: the `small` preset by its recipe.
- per-frame: as large, with the same quantizer and recipe, without time: 16 x 16 pixels of one frame
  to 19 bits, which is the rate of 4 x 8 x 8 blocks with 16 bits, rounded up.
- vidtok, o2: the networks of the presets `vidtok-fsq-488` and `magvit2-small` (the layers of
  O2-MAGVIT2), narrowed to the size of `small`, with its quantizer and recipe; --learning_rate tries
  other rates.
- cogvideox: the network of diffusers' `AutoencoderKLCogVideoX`, likewise. It needs `pip install
  diffusers` and is left out without.
- magvit2-pytorch: the layers of its README at the rate and twice the size of `small`, in its own
  `VideoTokenizerTrainer` with the learning rate of its README and its defaults: a discriminator of
  frames from the first step, no schedule, no clipping, 1,000 steps of warm-up. Not its own: no
  perceptual loss, as that needs a download; no accumulation over eight batches, which would leave
  an eighth of the steps; two codebooks of 8 bits instead of one of 10, for the rate.
- magvit2-pytorch-loop: that network in a plain loop: AdamW at 1e-3 with 30 steps of warm-up and a
  linear fall, gradients clipped at 1, squared error and its FSQ, no discriminator.

The other implementation is installed into a virtual environment of its own on first use.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_training import (
    Reconstructions,
    Result,
    evaluate,
    held_out,
    train,
    write_held_out,
    write_training_frames,
)
from equal_time import markdown, pin, read_results, run_missing
from side_by_side import HERE, environment
from torch import nn

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.evaluation.demo_run import QUANTIZERS
from magvit2_pytorch.layers.stateful import StatefulLayer
from magvit2_pytorch.tokenizer.presets import preset, recipe
from magvit2_pytorch.types import Context, Past

PER_FRAME = dict(
    patch_size=(1, 8),
    separate_first_frame_encoding=False,
    residual_conv_kernel_size=(1, 3, 3),
    latent_conv_kernel_size=(1, 3, 3),
    layers=(
        ("consecutive_residual", 1),
        ("compress_space", 224),
        ("consecutive_residual", 2),
    ),
    fsq_levels=(8, 8, 8, 8, 8, 16),
)


def narrowed(name: str, init_dim: int, layers: dict[int, int], **options: Any) -> dict[str, Any]:
    """A preset's network with other widths, and the quantizer and clips of `small`.

    `layers` gives the width that takes the place of each width its layers name.
    """

    def narrow(entry: Any) -> Any:
        words = (entry,) if isinstance(entry, str) else entry
        kind, *numbers = words
        if not numbers or numbers[0] not in layers:
            return entry
        return (kind, layers[numbers[0]], *numbers[1:])

    small, model = preset("small"), preset(name) | dict(init_dim=init_dim)
    for side in ("layers", "decoder_layers"):
        if model.get(side):
            model[side] = tuple(narrow(entry) for entry in model[side])
    codes = {key: small[key] for key in ("image_size", "use_fsq", "fsq_levels")}
    losses = [key for key in model if key.startswith("lfq_") or key == "codebook_size"]
    return {key: model[key] for key in model if key not in losses} | codes | options


NETWORKS = {
    "vidtok": narrowed("vidtok-fsq-488", 16, {128: 16, 256: 32, 512: 68}),
    "o2": narrowed("magvit2-small", 16, {128: 28, 256: 56}, norm_groups=4),
}
"""Whole configurations of other projects' networks."""
SMALL = {name: preset("small") | QUANTIZERS[name] for name in QUANTIZERS}
OURS = {**SMALL, "per-frame": preset("small") | PER_FRAME, **NETWORKS, "cogvideox": SMALL["fsq"]}
THEIRS = {"magvit2-pytorch": "trainer", "magvit2-pytorch-loop": "loop"}
ROWS = (
    "fsq", "lfq", "vidtok", "o2", "cogvideox", "magvit2-pytorch", "magvit2-pytorch-loop",
    "per-frame",
)  # fmt: skip
CLIP_OPTIONS = dict(num_frames=17, size=64, batch=4, seed=42)


class WholeClips(StatefulLayer):
    """A network of diffusers; it computes whole clips only."""

    def __init__(self, network: nn.Module, end: nn.Module):
        super().__init__()
        self.network = network
        self.layers = (end,)
        """What the trainer keeps from Muon: the convolution beside the quantizer."""

    def forward(self, x, past: Past = None, context: Context = Context()):
        return self.network(x)[0], ()


class CogVideoX(VideoTokenizer):
    """CogVideoX's encoder and decoder at an eighth of their width around another quantizer."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        from diffusers.models.autoencoders import autoencoder_kl_cogvideox as theirs

        # As many channels to a group as theirs.
        widths = dict(block_out_channels=(16, 32, 32, 64), norm_num_groups=4)
        # It has two channels of output, a mean and a variance, for each that it is asked for.
        dim = self.quantizer.latent_dim // 2
        encoder = theirs.CogVideoXEncoder3D(out_channels=dim, **widths)
        decoder = theirs.CogVideoXDecoder3D(in_channels=self.quantizer.quantized_dim, **widths)
        self.encoder = WholeClips(encoder, encoder.conv_out)
        self.decoder = WholeClips(decoder, decoder.conv_in)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)


def train_ours(name: str, folder: Path, minutes: float, learning_rate: float | None) -> Result:
    torch.manual_seed(CLIP_OPTIONS["seed"])
    tokenizer = (CogVideoX if name == "cogvideox" else VideoTokenizer)(**OURS[name])
    training = recipe("small") | dict(num_train_steps=1_000_000, max_duration_s=minutes * 60)
    if learning_rate is not None:
        training["learning_rate"] = learning_rate
    return train(name, folder, tokenizer, training)


def train_theirs(name: str, folder: Path, minutes: float, python: str) -> Result:
    """In their environment; what comes back are reconstructions, to be measured like ours."""
    frames = write_training_frames(folder.parent / "frames-128")
    clips = write_held_out(folder.parent / "held-out")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        options = dict(how=THEIRS[name], frames=frames, clips=clips, output=scratch)
        options |= CLIP_OPTIONS | dict(minutes=minutes)
        flags = [word for flag, value in options.items() for word in (f"--{flag}", str(value))]
        # Its trainer makes folders where it runs.
        worker = [python, str(HERE / "baselines_worker.py"), *flags]
        subprocess.run(worker, check=True, cwd=scratch)
        facts = json.loads((Path(scratch) / "facts.json").read_text("utf-8"))
        real = held_out()
        points = []
        for number, (step, seconds) in enumerate(facts["points"]):
            with np.load(Path(scratch) / f"{number}.npz") as arrays:
                # Theirs are in [0, 1].
                recons = [torch.from_numpy(arrays[clip]) * 2 - 1 for clip in real]
                codes = [torch.from_numpy(arrays[f"{clip}-codes"]) for clip in real]
            points.append(Reconstructions(step, seconds, recons, codes))
    return evaluate(name, points, real, facts["codebook_size"], facts["parameters"], "bf16")


def table(results: dict[str, dict[str, Any]]) -> str:
    """The rows there are, in Markdown."""
    clips = list(next(iter(results.values()))["psnr_db"]) if results else []
    columns = ["", "parameters", "bits per pixel", "steps", *clips, "mean", "codes", "perplexity"]
    rows = [
        [
            name,
            f"{r['parameters'] / 1e6:.2f} M",
            f"{r['bits_per_pixel']:.4f}",
            r["steps"],
            *(f"{r['psnr_db'][clip]:.2f}" for clip in clips),
            f"**{r['mean_psnr_db']:.2f}**",
            r["codes_used"],
            f"{r['perplexity']:.0f}",
        ]
        for name, r in results.items()
    ]
    return markdown(columns, rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=4.5, help="of training, for each row")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--learning_rate", type=float, help="in place of the recipe's, of our rows")
    parser.add_argument("--upstream_python", help="an interpreter that has magvit2-pytorch 0.5.1")
    parser.add_argument("--parallel", type=int, default=1, help="rows at once, each on a core")
    parser.add_argument("-o", "--output", type=Path, default=Path("baselines"))
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.core is not None:
        pin(args.core)
    # Results of other lengths of training and numbers of cores are not mixed with these.
    rate = args.learning_rate
    output = args.output.resolve() / (
        f"{args.minutes:g}-minutes"
        + (f"-rate-{rate:g}" if rate else "")
        + (f"-{args.parallel}-at-once" if args.parallel > 1 else "")
    )
    if args.row in OURS:
        result = train_ours(args.row, output / args.row, args.minutes, rate)
        result.write(output / f"{args.row}.json")
        return 0
    python = args.upstream_python
    if any(name in THEIRS for name in args.only):
        python = python or environment("upstream", "magvit2-pytorch==0.5.1")
    if args.row in THEIRS:
        result = train_theirs(args.row, output / args.row, args.minutes, python)
        result.write(output / f"{args.row}.json")
        return 0

    def command(name: str, core: int | None) -> list[str]:
        words = [sys.executable, __file__, "--row", name, "--minutes", str(args.minutes)]
        words += ["-o", str(args.output), *(["--learning_rate", str(rate)] if rate else [])]
        words += ["--parallel", str(args.parallel)]
        words += [] if core is None else ["--core", str(core)]
        return words + (["--upstream_python", python] if name in THEIRS else [])

    failed = run_missing(output, args.only, command, args.parallel)
    print(table(read_results(output, ROWS)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

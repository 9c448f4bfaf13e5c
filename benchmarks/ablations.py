"""What each default is worth: the `small` preset with one thing changed at a time.

    python benchmarks/ablations.py --minutes 3 --parallel 2 -o ablations
    python benchmarks/ablations.py --minutes 3 --parallel 2 -o ablations --weights VGG

Every variant trains for the same time on the demo's clips in a process of its own, with --parallel
pinned to a core of its own, and is measured on the demo's held-out frames at full size. What is
there already is not trained again. `small-again` is `small` with another seed: differences smaller
than that one's say nothing.

Those of the GAN and of the perceptual loss are here for their PSNR alone, which they are known to
cost; what they give to the eye is measured by adversarial.py.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from adversarial import GAN, PERCEPTUAL
from demo_training import Result, train
from equal_time import markdown, pin, read_results, run_missing

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.evaluation.demo_run import QUANTIZERS
from magvit2_pytorch.tokenizer.presets import preset, recipe

SEED = 0
NUM_POINTS = 4


@dataclass(frozen=True)
class Variant:
    """What differs from `small` and its recipe."""

    question: str
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def needs_weights(self) -> bool:
        return "perceptual_loss_weight" in self.training


def and_then(*layers: Any) -> dict[str, Any]:
    """The layers of `small` and these on the coarsest grid, next to the codes."""
    return dict(layers=(*preset("small")["layers"], *layers))


LFQ = QUANTIZERS["lfq"]
ENTROPY = LFQ | dict(lfq_entropy_loss_weight=0.02, lfq_commitment_loss_weight=0.05)
VARIANTS = {
    "small": Variant("everything as it is"),
    "small-again": Variant("how much is chance?", training=dict(seed=1)),
    "lfq": Variant("FSQ or LFQ at equal bits?", LFQ),
    "lfq-no-norm": Variant("norm before LFQ?", LFQ | dict(lfq_norm=None)),
    "lfq-rms-norm": Variant("layer norm or RMS norm?", LFQ | dict(lfq_norm="rms")),
    "lfq-losses-no-norm": Variant("losses instead of the norm?", ENTROPY | dict(lfq_norm=None)),
    "lfq-losses": Variant("losses beside the norm, at the model's default weights?", ENTROPY),
    "lfq-losses-annealed": Variant(
        "with an entropy weight that falls from three times its own, in 100 steps?",
        ENTROPY | dict(lfq_entropy_anneal_factor=3.0, lfq_entropy_anneal_steps=100),
    ),
    "lfq-entropy-0.1": Variant(
        "the papers' entropy weight?", LFQ | dict(lfq_entropy_loss_weight=0.1)
    ),
    "attend-space": Variant("attention in space?", and_then("attend_space")),
    "attend-time": Variant("attention in time?", and_then("attend_time")),
    "linear-attention": Variant("linear attention in space?", and_then("linear_attend_space")),
    "gateloop": Variant("a gated recurrence in time?", and_then("gateloop_time")),
    "first-frame-alike": Variant(
        "a first and a last map of its own for the first frame?",
        dict(separate_first_frame_encoding=False),
    ),
    "l1": Variant("which loss?", training=dict(reconstruction_loss="l1")),
    "charbonnier": Variant("which loss?", training=dict(reconstruction_loss="charbonnier")),
    "no-average": Variant("averaged weights?", training=dict(ema_decay=0.0)),
    "long-average": Variant("averaged over how long?", training=dict(ema_decay=0.999)),
    "gan": Variant("discriminators from step 50 on?", training=GAN),
    "perceptual": Variant("a perceptual loss?", training=PERCEPTUAL),
    "gan-perceptual": Variant("both?", training=GAN | PERCEPTUAL),
}
"""In the order to run them."""


def train_variant(name: str, folder: Path, minutes: float, weights: str | None) -> Result:
    variant = VARIANTS[name]
    training = recipe("small") | dict(num_train_steps=1_000_000, max_duration_s=minutes * 60)
    training |= dict(seed=SEED) | variant.training
    if variant.needs_weights:
        training |= dict(perceptual_weights=weights)
    torch.manual_seed(training["seed"])
    tokenizer = VideoTokenizer(**(preset("small") | variant.model))
    return train(name, folder, tokenizer, training, NUM_POINTS)


def table(results: dict[str, dict[str, Any]]) -> str:
    """The variants there are, in Markdown; differences where `small` is one of them."""
    columns = ["variant", "question", "parameters", "steps", "PSNR", "gain", "codes", "perplexity"]
    base = results.get("small")
    rows = [
        [
            name,
            VARIANTS[name].question,
            f"{r['parameters'] / 1e6:.2f} M",
            r["steps"],
            f"{r['mean_psnr_db']:.2f}",
            f"{r['mean_psnr_db'] - base['mean_psnr_db']:+.2f}" if base else "",
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
    parser.add_argument("--minutes", type=float, default=3.0, help="of training, for each variant")
    parser.add_argument("--parallel", type=int, default=1, help="at once, each on a core")
    parser.add_argument("--only", nargs="+", choices=tuple(VARIANTS), help="these variants")
    parser.add_argument("--weights", help="of a perceptual network")
    parser.add_argument("-o", "--output", type=Path, default=Path("ablations"))
    parser.add_argument("--variant", choices=tuple(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    output = args.output.resolve() / f"{args.minutes:g}-minutes-{args.parallel}-at-once"
    if args.variant:
        if args.core is not None:
            pin(args.core)
        result = train_variant(args.variant, output / args.variant, args.minutes, args.weights)
        result.write(output / f"{args.variant}.json")
        return 0

    names = args.only or [n for n, v in VARIANTS.items() if args.weights or not v.needs_weights]
    if not args.weights and any(VARIANTS[name].needs_weights for name in names):
        parser.error("these variants need --weights, a file that PerceptualLoss reads")

    def command(name: str, core: int | None) -> list[str]:
        words = [sys.executable, __file__, "--variant", name, "--minutes", str(args.minutes)]
        words += ["--parallel", str(args.parallel), "-o", str(args.output)]
        words += [] if core is None else ["--core", str(core)]
        return words + ([] if args.weights is None else ["--weights", args.weights])

    failed = run_missing(output, names, command, args.parallel)
    print(table(read_results(output, list(VARIANTS))))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""`magvit2 evaluate` and `evaluate-generator`: measure a model and write a report."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.cli.jobs import resumable
from magvit2_pytorch.cli.options import (
    ComputeOptions,
    Device,
    GeneratorModel,
    Model,
    ReportFolder,
    UserError,
    check_counts,
    find_device,
    find_model,
    find_tokenizer,
    held_out_of,
    output_folder,
    user_errors,
)
from magvit2_pytorch.cli.progress_bar import interruptible_bar
from magvit2_pytorch.evaluation.clip_choice import ClipChoice
from magvit2_pytorch.pipelines.progress import Plan

if TYPE_CHECKING:
    from magvit2_pytorch.evaluation.measure import EvaluationNetworks


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options of metrics that need a network."""

    perceptual_weights: str | None = None
    """Weights of the LPIPS or ST-LPIPS network, or of torchvision's vgg16 or alexnet, for a
    perceptual distance and Fréchet distances of its features; or torchvision:vgg16, which downloads
    them."""
    perceptual_heads: str | None = None
    """File of the LPIPS heads for that network, or torchmetrics for the heads in that package."""
    i3d: str | None = None
    """I3D as TorchScript, for the Fréchet video distance. Such a file is a program: use only one
    that you trust."""
    fvd_protocol: Literal["stylegan-v", "logits"] | None = None
    """Protocol of its features: stylegan-v (400 features, return_features=True) or logits."""

    def __post_init__(self):
        if (self.i3d is None) != (self.fvd_protocol is None):
            raise ValueError("--i3d and --fvd_protocol go together: give both")
        if self.perceptual_heads is not None and self.perceptual_weights is None:
            raise ValueError("--perceptual_heads goes with --perceptual_weights")

    def load(self, device: Device) -> "EvaluationNetworks":
        """The networks on a device; `UserError` if a file cannot be used."""
        from magvit2_pytorch.evaluation.measure import EvaluationNetworks
        from magvit2_pytorch.losses import build_perceptual
        from magvit2_pytorch.metrics.fvd import I3D

        name, perceptual, i3d = find_device(device), None, None
        with user_errors():
            if self.perceptual_weights is not None:
                perceptual = build_perceptual(self.perceptual_weights, self.perceptual_heads)
                perceptual.to(name)
            if self.i3d is not None:
                i3d = I3D(self.i3d, self.fvd_protocol, name)
        return EvaluationNetworks(perceptual, i3d)


def evaluate(
    *,
    model: Model,
    data: str,
    output: ReportFolder,
    clips: ClipChoice,
    networks: NetworkOptions,
    computing: ComputeOptions,
) -> int:
    """Measures a tokenizer on videos and images, and writes a report.

    Measures PSNR, SSIM, MS-SSIM, temporal error, codebook usage, bits per pixel and tokens per
    second, and LPIPS and rFVD if you give their networks; all in fp32. The report has values per
    clip, means with confidence intervals, and pictures of the worst, the median and the best clip:
    report.md, report.json, clips.jsonl and PNG files.

    Any number of files is processed in constant memory. Files that cannot be used are named and
    skipped; the exit status is 1 if none could be used. Running the same command again continues
    an interrupted evaluation; with other settings it is refused, and the message says what differs.

    Args:
        data: Folder of videos and images, a .txt list, a .csv table, or one file.
    """
    folder = output_folder(output)
    find_tokenizer(model)
    from magvit2_pytorch.evaluation.evaluator import Evaluation
    from magvit2_pytorch.evaluation.journal import EvaluationError

    options = dict(networks=networks.load(computing.device))
    tokenizer, options["tokenizer_id"], options["inference"] = computing.load(model)
    with user_errors():
        evaluation = Evaluation(tokenizer, data, clips, held_out=held_out_of(model), **options)

    def plan_text(plan: Plan) -> str:
        return f"{plan.num_done_before} clips were measured before" * bool(plan.num_done_before)

    bar = interruptible_bar(" clips", plan_text=plan_text)
    with resumable(), user_errors(EvaluationError), bar as progress:
        report = evaluation.run(folder, progress)
    _print_summary(report, folder)
    return 0


def _print_summary(report: dict, folder: Path) -> None:
    from magvit2_pytorch.evaluation.report_text import counted, headline

    for kind in ("videos", "images"):
        if report[kind] is not None:
            print(f"{counted(report, kind)}: {headline(report, kind)}")
    if report["num_skipped"]:
        num_files = report["data"]["num_files"]
        message = f"magvit2: {report['num_skipped']} of {num_files} files were skipped"
        print(message, file=sys.stderr)
    print(f"Wrote {folder}/: report.md, report.json, clips.jsonl and pictures")


@dataclass(frozen=True, kw_only=True)
class HeldOutOptions:
    """Options of what is measured."""

    valid_frac: float = 0.1
    """Share of each video that is held out, if the generator's run has no record of it."""
    num_valid_latents: int | None = None
    """Number of latent frames that are held out instead, without such a record."""
    num_latents: int = 2
    """Latent frames to predict."""
    num_samples: int = 4
    """Samples of the prediction to compare."""
    max_videos: int = 16
    """Measure this many videos."""

    def __post_init__(self):
        check_counts(
            num_valid_latents=self.num_valid_latents,
            num_latents=self.num_latents,
            max_videos=self.max_videos,
        )
        if self.num_samples < 2:
            raise ValueError(f"num_samples is {self.num_samples}: give at least 2 to compare")


def evaluate_generator(
    codes: str,
    /,
    *,
    generator: GeneratorModel,
    model: Model,
    output: ReportFolder,
    data: str | None = None,
    measured: HeldOutOptions,
    networks: NetworkOptions,
    computing: ComputeOptions,
) -> int:
    """Measures a generator on held-out ends of videos, and writes a report.

    Measures the exact bits of a code, beside models that know less, and the prediction of the next
    frames, beside the last frame repeated and the tokenizer's own reconstruction; the report has a
    picture of each video: report.md, report.json and PNG files. If you give their networks, it also
    has the perceptual distance of predictions, also between samples of one prompt (diversity), and
    the Fréchet video distance between continuations and real ones (gFVD; of more than 8 frames).

    Args:
        codes: Folder of the codes that the generator was trained on.
        data: Folder of the videos that were tokenized, or the only video; without it, predictions
            are compared with the tokenizer's reconstruction.
    """
    folder = output_folder(output)
    source = None if data is None else as_path(data)
    if source is not None and not source.exists():
        raise UserError(f"there is no {data}: --data is the folder of the videos")
    name = find_model(generator, "generator", "--generator")
    loaded = networks.load(computing.device)
    tokenizer, tokenizer_id, inference = computing.load(model, needs_codes=True)
    from magvit2_pytorch.codes.codes_dataset import CodesDataset
    from magvit2_pytorch.data.split import CODES
    from magvit2_pytorch.evaluation import generator_report
    from magvit2_pytorch.generators.generator import load_generator
    from magvit2_pytorch.pipelines.generation import check_generator

    with user_errors((ValueError, FileNotFoundError)):
        sampler = load_generator(name).to(tokenizer.device)
        check_generator(sampler, tokenizer, tokenizer_id)
        with interruptible_bar("video") as progress:
            report = generator_report.evaluate_generator(
                sampler, tokenizer, CodesDataset(codes), folder, data=source,
                held_out=held_out_of(generator).get(CODES), networks=loaded,
                inference=inference, progress=progress, **vars(measured),
            )  # fmt: skip
    if "bits" in report:
        print(
            f"{report['bits']:.3f} bits a code; adaptive coder "
            f"{report['adaptive_coder_bits']:.2f}, unigram {report['unigram_bits']:.2f}, uniform "
            f"{report['uniform_bits']:.2f}"
        )
    print(f"Wrote {folder}/: report.md, report.json and pictures")
    return 0

"""`magvit2 evaluate`: measures a tokenizer on a folder of videos and images."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from magvit2_pytorch.cli.model_folder import (
    Device,
    UsageError,
    UserError,
    find_device,
    find_tokenizer,
    load_tokenizer,
    user_errors,
)

if TYPE_CHECKING:
    from magvit2_pytorch.evaluation.measure import EvaluationNetworks


def evaluate(
    *,
    model: str,
    data: str,
    output: str,
    num_frames: int = 17,
    frame_stride: int = 1,
    clips_per_video: int = 1,
    max_clips: int | None = None,
    size: int | None = None,
    crop: bool = False,
    frame_range: tuple[int | float | None, int | float | None] | None = None,
    split: Literal["all", "train", "valid"] = "all",
    valid_frac: float = 0.05,
    random_split_seed: int = 42,
    seed: int = 0,
    perceptual_weights: str | None = None,
    perceptual_heads: str | None = None,
    i3d: str | None = None,
    fvd_protocol: Literal["stylegan-v", "logits"] | None = None,
    tile_size: int | Literal["auto"] | None = None,
    device: Device = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
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
        output: Folder for the report.
        num_frames: Frames per video clip; shorter videos are skipped.
        frame_stride: Take every n-th frame.
        clips_per_video: Maximum number of clips per video, spread over it without overlap; a
            single clip is taken from the middle.
        max_clips: Maximum number of clips in all, from files drawn at random with --seed.
        crop: Crop the central square of --size pixels, as most papers do.
        frame_range: Part of each video to take clips from, as in '[-17, null]', its last 17 frames,
            or '[0.9, 1.0]', its last tenth.
        split: Use all files, or only those that training on this folder used (train) or held out
            (valid).
        valid_frac: For --split, the value that training used.
        random_split_seed: For --split, the value that training used.
        seed: Random seed of the files that --max_clips draws and of the confidence intervals.
        perceptual_weights: Weights of the LPIPS or ST-LPIPS network, or of torchvision's vgg16 or
            alexnet, for a perceptual distance and Fréchet distances of its features; or
            torchvision:vgg16, which downloads them.
        perceptual_heads: File of the LPIPS heads for that network, or torchmetrics for the heads in
            that package.
        i3d: I3D as TorchScript, for rFVD. Such a file is a program: use only one that you trust.
        fvd_protocol: Protocol of its features: stylegan-v (400 features, return_features=True) or
            logits.
    """
    if (i3d is None) != (fvd_protocol is None):
        raise UsageError("--i3d and --fvd_protocol go together: give both")
    if perceptual_heads is not None and perceptual_weights is None:
        raise UsageError("--perceptual_heads goes with --perceptual_weights")
    folder = Path(output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder")
    find_tokenizer(model)
    from magvit2_pytorch.cli.evaluation_bar import evaluation_bar
    from magvit2_pytorch.evaluation.evaluation_clips import ClipChoice
    from magvit2_pytorch.evaluation.evaluator import Evaluation
    from magvit2_pytorch.evaluation.journal import EvaluationError
    from magvit2_pytorch.pipelines.inference import Inference

    with user_errors(to=UsageError):
        choice = ClipChoice(
            num_frames=num_frames,
            frame_stride=frame_stride,
            clips_per_video=clips_per_video,
            max_clips=max_clips,
            size=size,
            crop=crop,
            frame_range=frame_range,
            split=split,
            valid_frac=valid_frac,
            random_split_seed=random_split_seed,
            seed=seed,
        )
    networks = _load_networks(perceptual_weights, perceptual_heads, i3d, fvd_protocol, device)
    tokenizer, tokenizer_id = load_tokenizer(model, device)
    inference = Inference(precision, tile_size)
    options = dict(networks=networks, inference=inference, tokenizer_id=tokenizer_id)
    with user_errors():
        evaluation = Evaluation(tokenizer, data, choice, **options)
    try:
        with user_errors(EvaluationError), evaluation_bar() as progress:
            report = evaluation.run(folder, progress)
    except KeyboardInterrupt:
        print("magvit2: run the same command again to continue", file=sys.stderr)
        raise
    _print_summary(report, folder)
    return 0


def _load_networks(
    perceptual_weights: str | None,
    perceptual_heads: str | None,
    i3d: str | None,
    fvd_protocol: Literal["stylegan-v", "logits"] | None,
    device: Device,
) -> "EvaluationNetworks":
    from magvit2_pytorch.evaluation.measure import EvaluationNetworks
    from magvit2_pytorch.losses import build_perceptual
    from magvit2_pytorch.metrics.fvd import I3D

    device, perceptual, network = find_device(device), None, None
    with user_errors():
        if perceptual_weights is not None:
            perceptual = build_perceptual(perceptual_weights, perceptual_heads).to(device)
        if i3d is not None:
            network = I3D(i3d, fvd_protocol, device)
    return EvaluationNetworks(perceptual, network)


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

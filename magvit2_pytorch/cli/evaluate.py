"""`magvit2 evaluate`: how good a tokenizer is on a folder of videos and images."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from magvit2_pytorch.cli.errors import UsageError, UserError, user_errors
from magvit2_pytorch.cli.model_folder import Device, find_device, find_tokenizer, load_tokenizer

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
    """Measures a tokenizer on a folder of videos and images, and writes a report.

    PSNR, SSIM, MS-SSIM, temporal error, codebook use, bits per pixel and tokens per second; LPIPS
    and rFVD with networks of yours. Means with intervals, by clip and over all, and the worst, the
    median and the best clip in a picture: report.md, report.json, clips.jsonl and PNG files.

    Any number of files will do, in constant memory. Files that cannot be used are named and
    skipped; the exit status is 1 if none could be. The same command goes on where an earlier one
    stopped; with other settings it says what differs.

    Args:
        model: Folder of the tokenizer or of the run that trained it, or hf://OWNER/NAME.
        data: Folder of videos and images, a .txt list, a .csv table, or one file.
        output: Folder for the report.
        num_frames: Frames to a clip of a video; shorter videos are skipped.
        frame_stride: Every how manyeth frame a clip takes.
        clips_per_video: At most so many, spread over each video without overlap; one lies in its
            middle.
        max_clips: Stop at so many clips, of files drawn by --seed.
        size: Resize to this many pixels on the short side; the file's own size if not given.
        crop: Cut out the square of --size pixels at the centre, as most papers do.
        frame_range: Part of each video to take clips from, as in '[-17, null]', its last 17 frames,
            or '[0.9, 1.0]', its last tenth.
        split: All files, or those that training on this folder has seen (train) or held out
            (valid).
        valid_frac: For --split, what training was given for it.
        random_split_seed: For --split, what training was given for it.
        seed: Of the files that --max_clips draws, and of the intervals.
        perceptual_weights: File of LPIPS's or ST-LPIPS's network, or of torchvision's vgg16 or
            alexnet, for a perceptual distance and Fréchet distances of its features; or
            torchvision:vgg16, which downloads.
        perceptual_heads: File of LPIPS's heads for it, or torchmetrics for those that this
            package has.
        i3d: I3D as TorchScript, for rFVD. Such a file is a program: give one that you trust.
        fvd_protocol: How to ask it: stylegan-v (400 features, return_features=True) or logits.
        tile_size: Compute frames in tiles of so many pixels to a side, or `auto` for as many as
            fit into memory: the same but for rounding, for sizes that do not fit.
        device: Where to compute; auto takes a GPU if there is one.
        precision: What the tokenizer's convolutions compute in; measures compute in fp32.
    """
    if (i3d is None) != (fvd_protocol is None):
        raise UsageError("--i3d and --fvd_protocol go together: a file, and how to ask it")
    if perceptual_heads is not None and perceptual_weights is None:
        raise UsageError("--perceptual_heads goes with --perceptual_weights")
    folder = Path(output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder")
    find_tokenizer(model)
    from magvit2_pytorch.cli.evaluation_bar import evaluation_bar
    from magvit2_pytorch.evaluation.clips import ClipChoice
    from magvit2_pytorch.evaluation.evaluate import Evaluation
    from magvit2_pytorch.evaluation.journal import EvaluationError

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
    judges = _judges(perceptual_weights, perceptual_heads, i3d, fvd_protocol, device)
    tokenizer, tokenizer_id = load_tokenizer(model, device)
    how = dict(judges=judges, precision=precision, tile_size=tile_size, tokenizer_id=tokenizer_id)
    with user_errors():
        evaluation = Evaluation(tokenizer, data, choice, **how)
    try:
        with user_errors(EvaluationError), evaluation_bar() as progress:
            report = evaluation.run(folder, progress)
    except KeyboardInterrupt:
        print("magvit2: the same command goes on where this one stops", file=sys.stderr)
        raise
    _tell(report, folder)
    return 0


def _judges(
    perceptual_weights: str | None,
    perceptual_heads: str | None,
    i3d: str | None,
    fvd_protocol: Literal["stylegan-v", "logits"] | None,
    device: Device,
) -> "EvaluationNetworks":
    from magvit2_pytorch.evaluation.fvd import I3D
    from magvit2_pytorch.evaluation.measure import EvaluationNetworks
    from magvit2_pytorch.losses import build_perceptual

    where, perceptual, network = find_device(device), None, None
    with user_errors():
        if perceptual_weights is not None:
            perceptual = build_perceptual(perceptual_weights, perceptual_heads).to(where)
        if i3d is not None:
            network = I3D(i3d, fvd_protocol, where)
    return EvaluationNetworks(perceptual, network)


def _tell(report: dict, folder: Path) -> None:
    from magvit2_pytorch.evaluation.report_text import counted, headline

    for kind in ("videos", "images"):
        if report[kind] is not None:
            print(f"{counted(report, kind)}: {headline(report, kind)}")
    if report["num_skipped"]:
        of = f"{report['num_skipped']} of {report['data']['num_files']} files"
        print(f"magvit2: {of} were skipped", file=sys.stderr)
    print(f"Wrote {folder}/: report.md, report.json, clips.jsonl and pictures")

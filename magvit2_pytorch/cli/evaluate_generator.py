"""`magvit2 evaluate-generator`: measures a generator on held-out codes."""

from dataclasses import dataclass

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.cli.model_folder import (
    UserError,
    check_counts,
    find_model,
    held_out_of,
    output_folder,
    user_errors,
)
from magvit2_pytorch.cli.options import ComputeOptions, GeneratorModel, Model, ReportFolder
from magvit2_pytorch.cli.progress_bar import interruptible_bar


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
    computing: ComputeOptions,
) -> int:
    """Measures a generator on the held-out ends of videos, and writes a report.

    Measures the exact bits of a code, beside models that know less, and the prediction of the next
    frames, beside the last frame repeated and the tokenizer's own reconstruction; the report has a
    picture of each video: report.md, report.json and PNG files.

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
                held_out=held_out_of(generator).get(CODES), inference=inference,
                progress=progress, **vars(measured),
            )  # fmt: skip
    if "bits" in report:
        print(
            f"{report['bits']:.3f} bits a code; adaptive coder "
            f"{report['adaptive_coder_bits']:.2f}, unigram {report['unigram_bits']:.2f}, uniform "
            f"{report['uniform_bits']:.2f}"
        )
    print(f"Wrote {folder}/: report.md, report.json and pictures")
    return 0

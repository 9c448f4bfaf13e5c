"""Videos of which a part is visible, completed by a masked generator."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from magvit2_pytorch.functional import pad_space
from magvit2_pytorch.generators.generator import GeneratorCondition
from magvit2_pytorch.generators.masked import MaskedGenerator
from magvit2_pytorch.generators.sampling import Sampling
from magvit2_pytorch.generators.tasks import (
    TASKS,
    CodeGeometry,
    GivenCells,
    TaskVideo,
    given_cells,
)
from magvit2_pytorch.media.frames import to_float, to_uint8
from magvit2_pytorch.pipelines.generation import (
    DEFAULT_FPS,
    Prompt,
    class_condition,
    empty_prompt,
    generate_films,
)
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.pipelines.media_file import chunks, open_media
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.tiling import encoder_halo
from magvit2_pytorch.types import Codes, Video


def visible_pixels(task: str, video: Video, given: int = 1) -> Bool[Tensor, "t h w"]:
    """Pixels that a task shows; frame prediction shows `given` frames."""
    num_frames = video.shape[2]
    if given > num_frames:
        raise ValueError(f"{given} given frames are more than the {num_frames} of the video")
    return TASKS[task](TaskVideo(*video.shape[2:], given))


def visible_codes(tokenizer: VideoTokenizer, visible: Bool[Tensor, "t h w"]) -> GivenCells:
    """Codes that follow from visible pixels, by what the encoder sees.

    Raises `ValueError` if these are all codes.
    """
    geometry = CodeGeometry(tokenizer.time_factor, tokenizer.space_factor, encoder_halo(tokenizer))
    cells = given_cells(visible, geometry)
    if cells.known.all():
        raise ValueError(
            f"nothing is left to complete in {len(visible)} frames: give a longer video, or show "
            "less of it"
        )
    return cells


def complete_pixels(video: Video, visible: Bool[Tensor, "t h w"]) -> Video:
    """The visible pixels, and a guess at the others.

    Between frames that show a pixel its values are interpolated; before and after them the nearest
    is repeated; a pixel that no frame shows is grey.
    """
    count = video.shape[2]
    number = torch.arange(count, device=video.device)[:, None, None]
    visible = visible.to(video.device)
    before = torch.where(visible, number, -1).cummax(dim=0).values
    after = torch.where(visible, number, count).flip(0).cummin(dim=0).values.flip(0)
    first, last = torch.where(before < 0, after, before), torch.where(after == count, before, after)
    share = ((number - first) / (last - first).clamp(min=1)).to(video.dtype).clamp(0, 1)
    never = ~visible.any(dim=0)
    values = [
        video.gather(2, index.clamp(0, count - 1).expand(video.shape)) for index in (first, last)
    ]
    return torch.lerp(*values, share).masked_fill(never, 0)


@torch.no_grad()
def complete_video(
    generator: MaskedGenerator,
    tokenizer: VideoTokenizer,
    video: Video,
    task: str,
    given: int = 1,
    sampling: Sampling = Sampling(),
    samples: Int[Tensor, " b"] | None = None,
    condition: GeneratorCondition | None = None,
    inference: Inference = Inference(),
) -> Codes:
    """Codes of a video whose hidden parts the generator makes up.

    Codes that depend on visible pixels only are those of the video; which ones follows from the
    tokenizer. `given` is the number of frames that frame prediction shows. Raises `ValueError` if
    nothing is hidden.
    """
    visible = visible_pixels(task, video, given)
    known, hinted = (
        cells.to(generator.device).expand(len(video), -1, -1, -1)
        for cells in visible_codes(tokenizer, visible)
    )
    codes = inference.encode_stream(tokenizer).push(complete_pixels(video, visible))
    codes = codes.to(generator.device)
    return generator.fill(
        codes,
        known,
        hinted=hinted,
        task=task,
        sampling=sampling,
        samples=samples,
        condition=condition,
    )


def read_clip(
    tokenizer: VideoTokenizer,
    path: str | Path,
    num_frames: int,
    size: int | None = None,
    inference: Inference = Inference(),
) -> tuple[Video, Prompt]:
    """A file's first frames to complete, padded, and an empty prompt.

    They are `num_frames`, or fewer if 1 + k times the tokenizer's time factor are fewer. Raises
    `UnusableMedia` for a file without frames.
    """
    media = open_media(path, tokenizer.config.channels, size)
    factor = tokenizer.time_factor
    with closing(chunks(media.frames, num_frames, factor)) as parts:
        frames = next(parts)[:num_frames]
    count = 1 + (len(frames) - 1) // factor * factor
    prompt = empty_prompt(tokenizer, media.height, media.width)
    prompt = replace(prompt, num_frames=count, fps=media.fps or DEFAULT_FPS, source=Path(path).name)
    video = to_float(frames[:count].to(inference.frames_device(tokenizer)))[None]
    return pad_space(video, tokenizer.space_factor), prompt


def complete_films(
    generator: MaskedGenerator,
    tokenizer: VideoTokenizer,
    paths: Sequence[Path],
    source: Path,
    task: str,
    *,
    given: int = 1,
    num_frames: int = 17,
    size: int | None = None,
    side_by_side: bool = False,
    sampling: Sampling = Sampling(),
    first_sample: int = 0,
    class_name: str | None = None,
    inference: Inference = Inference(),
    record: dict[str, Any] | None = None,
    **options: Any,
) -> Prompt:
    """Writes films that complete the first frames of a file.

    `side_by_side`, the pixels that the task shows are to the left of each film, the others grey.
    `options` are those of `generate_films`, which writes them. Returns their number, size and rate.
    """
    video, prompt = read_clip(tokenizer, source, num_frames, size, inference)
    left = None
    if side_by_side:
        shown = video.masked_fill(~visible_pixels(task, video, given).to(video.device), 0)
        left = to_uint8(shown[0, ..., : prompt.height, : prompt.width])
    codes = complete_video(
        generator,
        tokenizer,
        video.expand(len(paths), -1, -1, -1, -1),
        task,
        given,
        sampling,
        torch.arange(first_sample, first_sample + len(paths), device=generator.device),
        class_condition(generator, class_name, len(paths)),
        inference,
    )
    generate_films(
        generator,
        tokenizer,
        paths,
        prompt,
        prompt.num_frames,
        sampling=sampling,
        first_sample=first_sample,
        class_name=class_name,
        inference=inference,
        record={"task": task, "given": given, "side_by_side": side_by_side, **(record or {})},
        codes=iter([codes]),
        left=left,
        **options,
    )
    return prompt

"""Films from a generator, from nothing or after a prompt.

They are decoded as codes come, in constant memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from magvit2_pytorch.atomic import replace_json
from magvit2_pytorch.codes.views import View
from magvit2_pytorch.functional import pad_space
from magvit2_pytorch.generators.generator import Generator, GeneratorCondition
from magvit2_pytorch.generators.sampling import Sampling
from magvit2_pytorch.media.frames import to_float, to_uint8
from magvit2_pytorch.pipelines.fingerprint import TokenizerId, TokenizerMismatch, decodes
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.pipelines.media_file import chunks, media_writer, open_media
from magvit2_pytorch.pipelines.progress import FrameCallback
from magvit2_pytorch.super_resolution import SuperResolution
from magvit2_pytorch.tokenizer_1d import AnyTokenizer, Tokenizer1d
from magvit2_pytorch.types import VALUE_RANGE, Codes, Frames
from magvit2_pytorch.version import __version__

DEFAULT_FPS = 24.0
"""Frames per second of films without a prompt."""


@dataclass(frozen=True)
class Prompt:
    """The beginning of a film, as codes."""

    codes: Int[Tensor, "1 j y x *q"]
    num_frames: int
    height: int
    width: int
    fps: float
    source: str | None = None


def read_prompt(
    tokenizer: AnyTokenizer,
    path: str | Path,
    num_frames: int | None = None,
    size: int | None = None,
    inference: Inference = Inference(),
    view: View = View(),
) -> Prompt:
    """Encodes the first frames of a file or view, by default all.

    They are 1 + k times the tokenizer's time factor, fewer than asked for if need be: then every
    latent is exact, and no frame of it is guessed. Of a 1-D tokenizer they are whole parts, of
    `inference.num_tokens` tokens each. Raises `ValueError` if the file has none.
    """
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"a prompt of {num_frames} frames: give 1 or more")
    media = open_media(path, tokenizer.config.channels, size).seen_as(path, view)
    factor, stream = tokenizer.time_factor, inference.encode_stream(tokenizer)
    device, parts, taken = inference.frames_device(tokenizer), [], 0
    for frames in chunks(media.frames, inference.chunk_frames, factor):
        if num_frames is not None:
            frames = frames[: num_frames - taken]
        if not len(frames):
            break
        taken += len(frames)
        video = pad_space(to_float(frames.to(device))[None], tokenizer.space_factor)
        codes = stream.push(video)  # what does not complete a latent stays in the stream
        if codes is not None:
            parts.append(codes)
    if not parts:
        raise ValueError(
            f"{path}: a prompt of {taken} frames is shorter than a part of this tokenizer, which "
            f"has {factor}: give more"
        )
    codes = torch.cat(parts, dim=1)
    if isinstance(tokenizer, Tokenizer1d):
        codes = codes.unflatten(1, (-1, 1, stream.count))
    alone = tokenizer.num_alone
    exact = alone + (codes.shape[1] - alone) * factor
    fps = media.fps or DEFAULT_FPS
    return Prompt(codes, exact, media.height, media.width, fps, Path(path).name)


def empty_prompt(
    tokenizer: AnyTokenizer, height: int, width: int, num_tokens: int | None = None
) -> Prompt:
    """No prompt: a film of this size from nothing.

    `num_tokens` are those of each part, of a 1-D tokenizer.
    """
    factor = tokenizer.space_factor
    grid = (-(-height // factor), -(-width // factor))
    if isinstance(tokenizer, Tokenizer1d):
        grid = (1, *tokenizer.counts([(tokenizer.time_factor, height, width)], num_tokens))
    books = () if tokenizer.num_codebooks == 1 else (tokenizer.num_codebooks,)
    codes = torch.zeros(1, 0, *grid, *books, dtype=torch.int64, device=tokenizer.device)
    return Prompt(codes, 0, height, width, DEFAULT_FPS)


def continued_codes(
    generator: Generator,
    prompt: Codes,
    sampling: Sampling,
    samples: Int[Tensor, " n"],
    condition: GeneratorCondition | None = None,
) -> Iterator[Codes]:
    """Codes of the prompt, then endless latent frames, for each of `samples`.

    `prompt` has one batch entry, which all samples share.
    """
    prompt = prompt.to(generator.device).expand(len(samples), *prompt.shape[1:])
    grid = prompt.shape[2:4]
    state, guide = generator.begin(len(samples), grid, condition), None
    if sampling.guidance and generator.conditions.names:
        guide = generator.begin(len(samples), grid)
    if prompt.shape[1]:
        yield prompt
        state = generator.read(prompt, state)
        guide = guide and generator.read(prompt, guide)
    while True:
        codes, state, guide = generator.next_frame(state, sampling, samples, guide)
        yield codes


def generate_films(
    generator: Generator,
    tokenizer: AnyTokenizer,
    paths: Sequence[Path],
    prompt: Prompt,
    num_frames: int,
    *,
    sampling: Sampling = Sampling(),
    first_sample: int = 0,
    class_name: str | None = None,
    inference: Inference = Inference(),
    fps: float | None = None,
    on_frames: FrameCallback | None = None,
    record: dict[str, Any] | None = None,
    upscaler: SuperResolution | None = None,
    codes: Iterator[Codes] | None = None,
    left: Frames | None = None,
) -> None:
    """Writes a film to each of `paths`, and a JSON beside it.

    A film begins with the reconstruction of its prompt, and an `upscaler` enlarges it. It depends
    on seed and sample number, not on the films generated beside it. The JSON has seed, sample
    number, options and `record`. Films appear when they are complete. `codes` are those of all
    films, in parts, if they do not continue the prompt. `left` frames, of the size before it is
    enlarged, go beside each film.
    """
    if codes is None:
        condition = class_condition(generator, class_name, len(paths))
        samples = torch.arange(first_sample, first_sample + len(paths), device=generator.device)
        codes = continued_codes(generator, prompt.codes, sampling, samples, condition)
    fps, num_written = fps or prompt.fps, 0
    if on_frames is not None:
        on_frames(0, num_frames)
    with ExitStack() as stack:
        writers = [stack.enter_context(media_writer(path, "video", fps)) for path in paths]
        for video in _decoded(tokenizer, codes, prompt, num_frames, inference, upscaler):
            num_written += video.shape[2]
            for write, film in zip(writers, video, strict=True):
                write(_side_by_side(left, to_uint8(film).cpu(), num_written))
            if on_frames is not None:
                on_frames(num_written, num_frames)
    scale = 1 if upscaler is None else upscaler.scale
    values = asdict(sampling) | {
        "class": class_name,
        "prompt": prompt.source,
        "prompt_frames": prompt.num_frames,
        "num_frames": num_frames,
        "num_tokens": inference.num_tokens,
        "size": [prompt.height * scale, prompt.width * scale],
        "fps": fps,
        "library_version": __version__,
    }
    for number, path in enumerate(paths, first_sample):
        # The options that make the film again.
        replace_json(path.with_suffix(".json"), {"sample": number} | values | (record or {}))


def _decoded(
    tokenizer: AnyTokenizer,
    codes: Iterator[Codes],
    prompt: Prompt,
    num_frames: int,
    inference: Inference,
    upscaler: SuperResolution | None,
) -> Iterator[Float[Tensor, "b c t y x"]]:
    """Frames of films in [-1, 1], of the prompt's size or enlarged."""
    enlarge = None if upscaler is None else inference.upscale_stream(upscaler)
    stream = inference.decode_stream(tokenizer, num_frames, (prompt.height, prompt.width))
    device = inference.frames_device(tokenizer)
    while stream.num_frames < num_frames:
        new = next(codes, None)
        video = stream.flush() if new is None else stream.push(new.to(device))
        if video is None:  # the decoder looks ahead
            continue
        video = video[..., : prompt.height, : prompt.width].clamp(*VALUE_RANGE)
        yield video if enlarge is None else enlarge.push(video).clamp(*VALUE_RANGE)


def _side_by_side(
    left: Frames | None, right: UInt8[Tensor, "t y x c"], stop: int
) -> UInt8[Tensor, "t y v c"]:
    """Frames up to number `stop` beside the `left` ones, enlarged."""
    if left is None:
        return right
    part = left[stop - len(right) : stop]
    scale = right.shape[1] // part.shape[1]
    part = part.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return torch.cat((part.to(right.device), right), dim=2)


def check_generator(
    generator: Generator, tokenizer: Any, tokenizer_id: TokenizerId, force: bool = False
) -> None:
    """Raises `TokenizerMismatch` unless this tokenizer decodes the generator's codes.

    Raises `ValueError` if one is for grids of codes, the other for sequences of tokens.
    """
    if isinstance(tokenizer, Tokenizer1d) != (generator.config.num_tokens is not None):
        kinds = ("a 1-D tokenizer", "a grid of codes")
        kinds = kinds if isinstance(tokenizer, Tokenizer1d) else ("a VideoTokenizer", "1-D tokens")
        raise ValueError(
            f"this is {kinds[0]}, but the generator was trained on {kinds[1]}: give the tokenizer "
            "of its codes"
        )
    wanted = generator.config.tokenizer_fingerprint
    if wanted is not None and not decodes(tokenizer, tokenizer_id, wanted) and not force:
        raise TokenizerMismatch(
            f"the generator was trained on codes of the tokenizer with fingerprint {wanted[:12]}, "
            f"not of {tokenizer_id}: give the former"
        )


def class_condition(
    generator: Generator, name: str | None, batch: int
) -> GeneratorCondition | None:
    """Condition of a class for a batch; `ValueError` for an unknown name."""
    if name is None:
        return None
    classes = generator.config.classes or ()
    if name not in classes:
        known = ", ".join(classes[:20]) or "none: it is not class-conditional"
        raise ValueError(f"the generator has no class {name!r}; it has {known}")
    labels = torch.full((batch,), classes.index(name), device=generator.device)
    return GeneratorCondition(classes=labels)

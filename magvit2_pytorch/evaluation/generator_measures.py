"""Likelihood, prediction and diversity of a generator on held-out ends of videos."""

import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from magvit2_pytorch.codes.code_model import CodeModel, modeled_levels, split_digits
from magvit2_pytorch.codes.code_windows import Stretch, read_grid
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.codes.views import is_view
from magvit2_pytorch.generators.generator import Generator
from magvit2_pytorch.generators.sampling import Sampling
from magvit2_pytorch.metrics.quality import psnr
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.types import Video

ADDED_COUNTS = [10.0**exponent for exponent in range(-6, 3)]
"""Counts that are added to those of every code; the best is taken, which favours the unigram."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out end of a video."""

    name: str
    codes: Int[Tensor, "1 j y x *q"]
    """All codes of the video."""
    start: int
    """The first held-out latent frame."""

    @property
    def end(self) -> Int[Tensor, "j y x *q"]:
        """The held-out codes."""
        return self.codes[0, self.start :]


def held_out_videos(codes: CodesDataset, stretches: Sequence[Stretch]) -> Iterator[HeldOut]:
    """Held-out ends; of whole videos all but the first latent frame."""
    for stretch in stretches:
        grid = read_grid(codes, stretch.video, 0, stretch.stop)
        yield HeldOut(codes.paths[stretch.video], grid[None], max(stretch.start, 1))


@torch.no_grad()
def exact_bits(generator: Generator, video: HeldOut) -> Float[Tensor, "j y x"]:
    """Bits of each held-out code given all before it, exactly."""
    codes = video.codes.to(generator.device)
    _, state = generator.bits(codes[:, : video.start])
    bits, _ = generator.bits(codes[:, video.start :], state=state)
    return bits[0].cpu()


class Unigram:
    """Model of codes by their frequencies in the training part."""

    def __init__(self, codes: CodesDataset, stretches: Sequence[Stretch], size: int):
        self.counts, self.size = Counter(), size
        for stretch in stretches:
            if not is_view(codes.paths[stretch.video]):
                grid = read_grid(codes, *stretch)
                self.counts.update(_positions(grid, codes.num_codebooks))

    def bits(self, codes: Int[Tensor, "j y x *q"], num_codebooks: int, added: float) -> float:
        """Mean bits of codes, with `added` to the count of every code."""
        positions = _positions(codes, num_codebooks)
        total = self.counts.total() + added * self.size
        counts = (self.counts[position] + added for position in positions)
        return sum(-math.log2(count / total) for count in counts) / len(positions)


def _positions(codes: Tensor, num_codebooks: int) -> list:
    if num_codebooks == 1:
        return codes.flatten().tolist()
    return list(map(tuple, codes.flatten(0, -2).tolist()))


def adaptive_bits(video: HeldOut, levels: tuple[tuple[int, ...], ...]) -> float:
    """Mean bits of held-out codes in the adaptive entropy coder.

    It has coded those before and learns from the video alone: a bound to beat for a model that was
    trained on it.
    """
    model_levels = [modeled_levels(own) for own in levels]
    codes = video.codes[0].numpy().reshape(*video.codes.shape[1:4], len(levels))
    digits = np.concatenate(
        [split_digits(codes[..., book], own) for book, own in enumerate(model_levels)], axis=-1
    )
    frames = np.zeros(len(digits))

    def count(positions, digit, bit, probabilities):
        bits = (digits[(*positions, digit)] >> bit & 1).astype(bool)
        frames[positions[0]] -= np.log2(np.where(bits, probabilities, 1 - probabilities)).sum()
        return bits

    CodeModel(model_levels).visit(digits.shape[:3], count)
    return float(frames[video.start :].sum() / math.prod(video.end.shape[:3]))


@dataclass(frozen=True)
class Prediction:
    """PSNR in dB of each further latent's frames."""

    most_likely: list[float]
    """Of the most likely codes, one after the other."""
    sampled: list[float]
    """Mean over samples of temperature 1."""
    best: list[float]
    """Of the best sample."""
    repeated: list[float]
    """Of the last decoded frame, repeated."""
    ceiling: list[float]
    """Of the true codes: the tokenizer's own error."""
    pairwise: list[float]
    """Mean between two samples: the lower, the more they differ."""
    correct: list[float]
    """Share of the most likely codes that are the true ones."""


@torch.no_grad()
def predict(
    generator: Generator,
    tokenizer: VideoTokenizer,
    video: HeldOut,
    real: Video,
    num_latents: int = 2,
    num_samples: int = 4,
    inference: Inference = Inference(),
) -> tuple[Prediction, dict[str, Tensor]]:
    """Continues a video from its held-out start, and compares the results.

    `real` is the whole video in [-1, 1], on the CPU. Also returns the frames of the continuations.
    """
    codes = video.codes.to(generator.device)
    before, wanted = codes[:, : video.start], codes[:, video.start : video.start + num_latents]
    stream = inference.decode_stream(tokenizer)
    last = stream.push(before.to(tokenizer.device))[:, :, -1:]

    def decoded(new: Tensor) -> Video:
        branch = copy.copy(stream)
        parts = branch.push(new.to(tokenizer.device)), branch.flush()
        frames = torch.cat([part for part in parts if part is not None], dim=2)
        return frames[..., : real.shape[-2], : real.shape[-1]].cpu()

    def drawn(sampling: Sampling, number: int) -> Tensor:
        return _continue(generator, before, num_latents, sampling, number)

    likely = drawn(Sampling(temperature=0.0), 0)
    films = {
        "true codes": decoded(wanted),
        "most likely": decoded(likely),
        **{f"sample {n}": decoded(drawn(Sampling(), n)) for n in range(num_samples)},
    }
    start = 1 + (video.start - 1) * tokenizer.time_factor
    films["original"] = real[:, :, start : start + films["true codes"].shape[2]]
    films["repeated"] = last.cpu()[..., : real.shape[-2], : real.shape[-1]].expand_as(
        films["true codes"]
    )
    # The last latent may stand for fewer frames than it decodes to.
    films = {name: film[:, :, : films["original"].shape[2]] for name, film in films.items()}
    samples = [films[f"sample {n}"] for n in range(num_samples)]

    def against(film: Video, other: Video = films["original"]) -> list[float]:
        parts = (x.split(tokenizer.time_factor, 2) for x in (film, other))
        return [float(psnr(a, b)) for a, b in zip(*parts, strict=True)]

    of_samples = np.array([against(film) for film in samples])
    between = [against(a, b) for a, b in combinations(samples, 2)]
    equal = (likely == wanted).flatten(2)
    return Prediction(
        most_likely=against(films["most likely"]),
        sampled=of_samples.mean(axis=0).tolist(),
        best=of_samples.max(axis=0).tolist(),
        repeated=against(films["repeated"]),
        ceiling=against(films["true codes"]),
        pairwise=np.mean(between, axis=0).tolist(),
        correct=equal.float().mean(dim=-1)[0].tolist(),
    ), films


def _continue(
    generator: Generator, before: Tensor, num_latents: int, sampling: Sampling, number: int
) -> Tensor:
    """Codes of the latent frames after `before`, of sample `number`."""
    state = generator.read(before, generator.begin(1, before.shape[2:4]))
    frames, samples = [], torch.tensor([number], device=generator.device)
    for _ in range(num_latents):
        frame, state, _ = generator.next_frame(state, sampling, samples)
        frames.append(frame)
    return torch.cat(frames, dim=1)


@torch.no_grad()
def nearest_share(
    frame: Int[Tensor, "y x *q"], codes: CodesDataset, stretches: Sequence[Stretch]
) -> float:
    """Largest share of equal codes with a frame to train on.

    It is compared with the frames of its size. Samples that share far more than held-out frames do
    were learnt by heart.
    """
    best = 0.0
    for stretch in stretches:
        grid = read_grid(codes, *stretch)
        if grid.shape[1:] == frame.shape:
            best = max(best, float((grid == frame).flatten(1).float().mean(dim=1).max()))
    return best

"""Continuations of held-out ends of videos, compared with the truth."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magvit2_pytorch.evaluation.generator_measures import HeldOut
from magvit2_pytorch.generators.generator import Generator, State
from magvit2_pytorch.generators.sampling import Sampling
from magvit2_pytorch.losses.perceptual import PerceptualLoss
from magvit2_pytorch.metrics.fvd import I3D
from magvit2_pytorch.metrics.moments import FrechetDistance
from magvit2_pytorch.metrics.quality import psnr
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.tokenizer.streaming import DecodeStream
from magvit2_pytorch.tokenizer_1d import AnyTokenizer
from magvit2_pytorch.tokenizer_1d.sequence_streams import TokenDecodeStream
from magvit2_pytorch.types import Video


@dataclass(frozen=True)
class Comparison:
    """PSNR in dB, or another measure, of each further latent's frames."""

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
    """Mean between two samples: the farther apart, the more they differ."""


Films = Mapping[str, Video]
"""Continuations of one video, on the CPU, by name."""
Pairs = Sequence[tuple[str, str]]
"""Names of films to compare."""


def sample_names(films: Films) -> list[str]:
    """Names of the sampled continuations."""
    return [name for name in films if name.startswith("sample ")]


@torch.no_grad()
def continuations(
    generator: Generator,
    tokenizer: AnyTokenizer,
    video: HeldOut,
    state: State,
    num_latents: int = 2,
    num_samples: int = 4,
    inference: Inference = Inference(),
) -> tuple[dict[str, Video], list[float]]:
    """Continuations of a video from its held-out start.

    Also returns the share of the most likely codes of each latent that are the true ones. `state`
    is that of the generator before the end.
    """
    wanted = video.end[None, :num_latents].to(generator.device)
    stream, last = _decoded_before(tokenizer, video, inference)

    def decoded(new: Tensor) -> Video:
        branch = copy.copy(stream)
        parts = branch.push(new.to(tokenizer.device)), branch.flush()
        frames = torch.cat([part for part in parts if part is not None], dim=2)
        # Frames that waited for later latents come first.
        return frames[:, :, -new.shape[1] * tokenizer.time_factor :].cpu()

    def drawn(sampling: Sampling, number: int) -> Tensor:
        return _continue(generator, state, wanted.shape[1], sampling, number)

    likely = drawn(Sampling(temperature=0.0), 0)
    films = {
        "true codes": decoded(wanted),
        "most likely": decoded(likely),
        **{f"sample {n}": decoded(drawn(Sampling(), n)) for n in range(num_samples)},
    }
    films["repeated"] = last.cpu().expand_as(films["true codes"])
    return films, (likely == wanted).flatten(2).float().mean(dim=-1)[0].tolist()


def _decoded_before(
    tokenizer: AnyTokenizer, video: HeldOut, inference: Inference
) -> tuple[DecodeStream | TokenDecodeStream, Video]:
    """A stream after the held-out end's past, and its last frame."""
    stream = inference.decode_stream(tokenizer, size=video.size)
    frames = None
    before = video.codes[:, : video.start].to(tokenizer.device)
    for part in before.split(inference.chunk_latents(tokenizer), dim=1):
        frames = stream.push(part)
    parts = (frames, copy.copy(stream).flush())
    return stream, torch.cat([part for part in parts if part is not None], dim=2)[:, :, -1:]


def _continue(
    generator: Generator,
    state: State,
    num_latents: int,
    sampling: Sampling,
    number: int,
) -> Tensor:
    """Codes of the latent frames after a state, of sample `number`."""
    frames, samples = [], torch.tensor([number], device=generator.device)
    for _ in range(num_latents):
        frame, state, _ = generator.next_frame(state, sampling, samples)
        frames.append(frame)
    return torch.cat(frames, dim=1)


def compare(
    films: Films,
    measure: Callable[[Films, Pairs, int], Sequence[Sequence[float]]],
    time_factor: int,
    best: Callable[..., np.ndarray] = np.max,
) -> Comparison:
    """Compares continuations with the film "original", and samples with each other.

    `measure` gives a value for each pair of films and `time_factor` frames.
    """
    samples = sample_names(films)
    single = ("most likely", "repeated", "true codes", *samples)
    pairs = [(name, "original") for name in single]
    pairs += combinations(samples, 2)
    values = [list(map(float, row)) for row in measure(films, pairs, time_factor)]
    likely, repeated, ceiling = values[:3]
    sampled = np.array(values[3 : len(single)])
    return Comparison(
        most_likely=likely,
        sampled=sampled.mean(axis=0).tolist(),
        best=best(sampled, axis=0).tolist(),
        repeated=repeated,
        ceiling=ceiling,
        pairwise=np.mean(values[len(single) :], axis=0).tolist(),
    )


def psnr_of_pairs(films: Films, pairs: Pairs, time_factor: int) -> list[list[float]]:
    """PSNR in dB of pairs of films, for each `time_factor` frames."""
    parts = {name: film.split(time_factor, dim=2) for name, film in films.items()}
    return [
        [float(psnr(a, b)) for a, b in zip(parts[one], parts[other], strict=True)]
        for one, other in pairs
    ]


@torch.no_grad()
def perceptual_of_pairs(
    films: Films, pairs: Pairs, time_factor: int, network: PerceptualLoss
) -> list[list[float]]:
    """Perceptual distance of pairs of films, a mean over each `time_factor` frames."""
    device, frames = network.mean.device, []
    # Frame by frame: the features of a frame take a hundred times its memory.
    for number in range(films["original"].shape[2]):
        features = {
            name: network.features(film[:, :, number].to(device)) for name, film in films.items()
        }
        frames.append([network.distance(features[one], features[other]) for one, other in pairs])
    return [
        [float(part.mean()) for part in torch.stack(row).split(time_factor)]
        for row in zip(*frames, strict=True)
    ]


class VideoDistances:
    """Fréchet video distances between continuations and real ones: `add`, then `report`.

    Compares clips of `num_frames` that follow the prompts, without these. Raises `ValueError` if
    the network does not accept them.
    """

    def __init__(self, i3d: I3D, num_frames: int, channels: int):
        self.i3d, self.num_frames = i3d, num_frames
        self.device = next((p.device for p in i3d.network.parameters()), torch.device("cpu"))
        dim = i3d.check(num_frames, channels)
        self.distances = {
            name: FrechetDistance(dim, i3d.settings.unbiased)
            for name in ("sampled", "most_likely", "repeated", "ceiling")
        }
        self.sizes: set[tuple[int, int]] = set()

    def add(self, films: Films) -> None:
        """Adds a video's continuations, unless they have fewer frames."""
        if films["original"].shape[2] < self.num_frames:
            return
        self.sizes.add(tuple(films["original"].shape[-2:]))
        features = {name: self.i3d.features(film.to(self.device)) for name, film in films.items()}
        samples = torch.cat([features[name] for name in sample_names(films)])
        others = (features[name] for name in ("most likely", "repeated", "true codes"))
        for distance, made in zip(self.distances.values(), (samples, *others), strict=True):
            distance.update(made, features["original"])

    def report(self) -> dict[str, Any]:
        """The distances and their protocol; None with fewer than two clips."""
        sampled = self.distances["sampled"]
        values = {
            name: distance.compute() if distance.num_vectors > 1 else None
            for name, distance in self.distances.items()
        }
        return values | dict(
            protocol=self.i3d.protocol,
            num_generated=sampled.recon.count,
            num_real=sampled.real.count,
            num_features=sampled.dim,
            num_frames=self.num_frames,
            sizes=sorted(map(list, self.sizes)),
        )

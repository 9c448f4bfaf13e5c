"""Measurements of one clip, and totals over clips."""

import math
from typing import NamedTuple

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.evaluation.evaluation_clips import Clip
from magvit2_pytorch.evaluation.journal import EvaluationError
from magvit2_pytorch.functional import pad_frames
from magvit2_pytorch.losses.perceptual import PerceptualLoss
from magvit2_pytorch.media.frames import to_float
from magvit2_pytorch.metrics.codebook import CodebookUsage, bits_per_pixel
from magvit2_pytorch.metrics.frechet import FrechetDistance
from magvit2_pytorch.metrics.fvd import I3D
from magvit2_pytorch.metrics.quality import (
    MIN_SIDE,
    MS_SSIM_MIN_SIDE,
    ms_ssim,
    psnr,
    ssim,
    temporal_consistency,
)
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.pipelines.media_file import pad_space
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.types import Codes, Video

FeaturePair = tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]
"""Features of the reconstruction and of the original."""


class EvaluationNetworks(NamedTuple):
    """Networks for perceptual metrics; None skips the metric."""

    perceptual: PerceptualLoss | None = None
    i3d: I3D | None = None


class ClipMeasurement(NamedTuple):
    """Metrics, codes and features of one clip."""

    values: dict[str, float | int | None]
    """By name. None if a metric does not apply (clip too small, one frame, no network, no codes),
    and for the infinite PSNR of a clip that equals its original."""
    codes: Codes | None
    features: dict[str, FeaturePair]
    """By the name of the Fréchet distance."""


class Totals:
    """Codebook usage and Fréchet distances over all clips of one kind."""

    def __init__(self, tokenizer: VideoTokenizer, networks: EvaluationNetworks):
        self.networks = networks
        self.usage = None
        if tokenizer.codebook_size is not None:
            self.usage = CodebookUsage(tokenizer.codebook_size, tokenizer.num_codebooks)
        self.distances: dict[str, FrechetDistance] = {}

    def add(self, measurement: ClipMeasurement) -> None:
        """Adds the codes and features of a clip."""
        if self.usage is not None:
            self.usage.update(measurement.codes)
        for name, (recon, real) in measurement.features.items():
            self._distance(name, recon.shape[1]).update(recon, real)

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state; restoring it is exact."""
        parts = {f"frechet.{name}": part for name, part in self.distances.items()}
        if self.usage is not None:
            parts["usage"] = self.usage
        return {
            f"{name}/{key}": value
            for name, part in parts.items()
            for key, value in part.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replaces the state."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            part, key = name.split("/")
            parts.setdefault(part, {})[key] = value
        self.distances.clear()
        for part, values in parts.items():
            if part == "usage":
                self.usage.load_state_dict(values)
            else:
                dim = len(values["real.mean"])
                self._distance(part.removeprefix("frechet."), dim).load_state_dict(values)

    def _distance(self, name: str, dim: int) -> FrechetDistance:
        if name not in self.distances:
            is_fvd = name.startswith("fvd")
            unbiased = self.networks.i3d.settings.unbiased if is_fvd else True
            self.distances[name] = FrechetDistance(dim, unbiased)
        return self.distances[name]


@torch.no_grad()
def measure(
    tokenizer: VideoTokenizer,
    clip: Clip,
    networks: EvaluationNetworks = EvaluationNetworks(),
    inference: Inference = Inference(),
) -> ClipMeasurement:
    """Reconstructs a clip with the tokenizer and measures the result.

    The reconstruction is clamped to [-1, 1] but not rounded to bytes. Raises `EvaluationError` if
    it is not finite.
    """
    real = to_float(clip.frames.to(tokenizer.device))[None]
    recon, codes, grid = reconstruct_clip(tokenizer, real, inference)
    if not recon.isfinite().all():
        advice = "is it damaged?" if inference.precision == "fp32" else "try precision fp32"
        raise EvaluationError(f"the reconstruction of {clip.name} is not finite: {advice}")
    recon = recon.float().clamp(-1, 1)
    values: dict[str, float | int | None] = dict(
        psnr=_finite(psnr(recon, real)), ssim=None, ms_ssim=None, perceptual=None,
        temporal_error=None, motion_energy=None,
    )  # fmt: skip
    num_frames, height, width = real.shape[2:]
    if min(height, width) >= MIN_SIDE:
        values["ssim"] = float(ssim(recon, real))
    if min(height, width) >= MS_SSIM_MIN_SIDE:
        values["ms_ssim"] = float(ms_ssim(recon, real))
    if num_frames > 1:
        error, energy = temporal_consistency(recon, real)
        values["temporal_error"], values["motion_energy"] = float(error), float(energy)
    features: dict[str, FeaturePair] = {}
    perceptual, i3d = networks
    if perceptual is not None and _is_large_enough(perceptual, height, width):
        values["perceptual"], features = _perceptual_metrics(perceptual, recon, real)
    if i3d is not None and clip.kind == "video":
        pair = (i3d.features(recon), i3d.features(real))
        features[f"fvd_{i3d.protocol.replace('-', '_')}"] = pair
    values |= _rates(tokenizer, clip, codes, grid, (num_frames, height, width))
    return ClipMeasurement(values, codes, features)


def reconstruct_clip(
    tokenizer: VideoTokenizer, video: Video, inference: Inference = Inference()
) -> tuple[Video, Codes | None, tuple[int, int, int]]:
    """Reconstruction, codes and latent grid of a clip of any size."""
    num_frames, height, width = video.shape[2:]
    padded = pad_frames(pad_space(video, tokenizer.space_factor), tokenizer.time_factor)
    device = inference.frames_device(tokenizer)
    encoder, decoder = inference.encode_stream(tokenizer), inference.decode_stream(tokenizer)
    step = inference.chunk_latents(tokenizer) * tokenizer.time_factor
    starts = [0, *range(1 + step, padded.shape[2], step)]
    codes, recon = [], []
    for start, stop in zip(starts, [*starts[1:], padded.shape[2]], strict=True):
        quantized = encoder.push_quantized(padded[:, :, start:stop].to(device))
        codes.append(quantized.codes)
        recon.append(decoder.push(quantized.quantized.to(device)))
    video = torch.cat(recon, dim=2)[:, :, :num_frames, :height, :width].to(tokenizer.device)
    grid = tokenizer.latent_grid(*padded.shape[2:])
    return video, None if codes[0] is None else torch.cat(codes, dim=1), grid


def _perceptual_metrics(
    perceptual: PerceptualLoss, recon: Video, real: Video
) -> tuple[float, dict[str, FeaturePair]]:
    """Perceptual distance of a clip, and features for Fréchet distances.

    The features are those of the last layer for every frame, averaged over its area, and their
    differences between consecutive frames.
    """
    distances, pooled = [], ([], [])
    # Frame by frame: the features of a frame take a hundred times its memory.
    for frames in zip(recon.unbind(2), real.unbind(2), strict=True):
        features = [perceptual.features(frame) for frame in frames]
        distances.append(perceptual.distance(*features))
        for rows, layers in zip(pooled, features, strict=True):
            rows.append(reduce(layers[-1].float(), "n d h w -> n d", "mean"))
    recon_rows, real_rows = (torch.cat(rows) for rows in pooled)
    pairs = {"frechet_frames": (recon_rows, real_rows)}
    if len(recon_rows) > 1:
        pairs["frechet_motion"] = (recon_rows.diff(dim=0), real_rows.diff(dim=0))
    return float(torch.stack(distances).mean()), pairs


def _is_large_enough(perceptual: PerceptualLoss, height: int, width: int) -> bool:
    return perceptual.resize_to is not None or min(height, width) >= perceptual.trunk.min_size


def _rates(
    tokenizer: VideoTokenizer,
    clip: Clip,
    codes: Codes | None,
    grid: tuple[int, int, int],
    video_grid: tuple[int, int, int],
) -> dict[str, float | int | None]:
    tokens = math.prod(grid) if codes is None else codes.numel()
    bits = None
    if codes is not None:
        bits = bits_per_pixel(tokenizer.quantizer.bits_per_position, grid, video_grid)
    per_second = None if clip.fps is None else tokens / video_grid[0] * clip.fps
    return dict(bits_per_pixel=bits, tokens=tokens, tokens_per_second=per_second)


def _finite(value: Float[Tensor, "1"]) -> float | None:
    return float(value) if math.isfinite(float(value)) else None

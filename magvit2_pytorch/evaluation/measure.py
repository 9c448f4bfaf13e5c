"""Measurements of one clip, and totals over clips."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.evaluation.evaluation_clips import Clip
from magvit2_pytorch.evaluation.journal import EvaluationError
from magvit2_pytorch.functional import NotFinite, space_padding
from magvit2_pytorch.losses.perceptual import PerceptualLoss
from magvit2_pytorch.media.frames import to_float
from magvit2_pytorch.metrics.codebook import CodebookUsage, bits_per_pixel
from magvit2_pytorch.metrics.fvd import I3D
from magvit2_pytorch.metrics.moments import FrechetDistance
from magvit2_pytorch.metrics.quality import (
    MIN_SIDE,
    MS_SSIM_MIN_SIDE,
    ms_ssim,
    psnr,
    ssim,
    temporal_consistency,
)
from magvit2_pytorch.pipelines.fingerprint import weights_hash
from magvit2_pytorch.pipelines.inference import Inference, reconstruct_clip
from magvit2_pytorch.tokenizer_1d import AnyTokenizer, TokenCodes, Tokenizer1d
from magvit2_pytorch.tokenizer_1d.token_counts import count_steps
from magvit2_pytorch.types import VALUE_RANGE, Codes, MediaKind, Video

QUALITIES = ("psnr", "ssim", "ms_ssim", "perceptual", "temporal_error", "motion_energy")

FeaturePair = tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]
"""Features of the reconstruction and of the original."""


class EvaluationNetworks(NamedTuple):
    """Networks for perceptual metrics; None skips the metric."""

    perceptual: PerceptualLoss | None = None
    i3d: I3D | None = None

    def metadata(self) -> dict[str, dict[str, str] | None]:
        """Names and hashes of the networks, in plain values."""
        perceptual, i3d = self
        values: dict[str, dict[str, str] | None] = dict(perceptual=None, i3d=None)
        if perceptual is not None:
            values["perceptual"] = dict(name=perceptual.name, weights=weights_hash(perceptual))
        if i3d is not None:
            values["i3d"] = dict(protocol=i3d.protocol, file=i3d.file_hash)
        return values


class ClipMeasurement(NamedTuple):
    """Metrics, codes and features of one clip."""

    values: dict[str, Any]
    """Numbers by name, and of a 1-D tokenizer `by_tokens`. None if a metric does not apply, and for
    the infinite PSNR of a clip that equals its original."""
    codes: Codes | TokenCodes | None
    features: dict[str, FeaturePair]
    """By the name of the Fréchet distance."""


class Totals:
    """Codebook usage and Fréchet distances over all clips of each kind."""

    def __init__(self, tokenizer: AnyTokenizer, networks: EvaluationNetworks):
        self.tokenizer, self.networks = tokenizer, networks
        self.parts: dict[str, CodebookUsage | FrechetDistance] = {}
        """By kind and name, such as "video/usage"."""

    def add(self, kind: MediaKind, measurement: ClipMeasurement) -> None:
        """Adds the codes and features of a clip."""
        if measurement.codes is not None:
            self._part(f"{kind}/usage").update(measurement.codes)
        for name, (recon, real) in measurement.features.items():
            self._part(f"{kind}/{name}", recon.shape[1]).update(recon, real)

    def usage(self, kind: MediaKind) -> CodebookUsage | None:
        """Use of the codebook by clips of a kind; None without codes."""
        return self.parts.get(f"{kind}/usage")

    def distances(self, kind: MediaKind) -> dict[str, FrechetDistance]:
        """Fréchet distances of a kind by name, sorted."""
        names = (name.split("/") for name in sorted(self.parts))
        return {n: self.parts[f"{k}/{n}"] for k, n in names if k == kind and n != "usage"}

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state; restoring it is exact."""
        return {
            f"{name}/{key}": value
            for name, part in self.parts.items()
            for key, value in part.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replaces the state."""
        states: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            part, _, key = name.rpartition("/")
            states.setdefault(part, {})[key] = value
        self.parts.clear()
        for name, values in states.items():
            dim = 0 if name.endswith("usage") else len(values["real.mean"])
            self._part(name, dim).load_state_dict(values)

    def _part(self, name: str, dim: int = 0) -> CodebookUsage | FrechetDistance:
        """A part of this name, made at its first use."""
        if name not in self.parts:
            if name.endswith("usage"):
                sizes = (self.tokenizer.codebook_size, self.tokenizer.num_codebooks)
                self.parts[name] = CodebookUsage(*sizes)
            else:
                unbiased = "/fvd" not in name or self.networks.i3d.settings.unbiased
                self.parts[name] = FrechetDistance(dim, unbiased)
        return self.parts[name]


@torch.no_grad()
def reconstruct(
    tokenizer: AnyTokenizer, clip: Clip, inference: Inference = Inference()
) -> tuple[Video, Video, Codes | TokenCodes | None]:
    """A clip, its reconstruction in [-1, 1] (`EvaluationError` unless finite), codes."""
    real = to_float(clip.frames.to(tokenizer.device))[None]
    advice = "is it damaged?" if inference.precision == "fp32" else "try precision fp32"
    message = f"the reconstruction of {clip.name} is not finite: {advice}"
    try:
        recon, codes = reconstruct_clip(tokenizer, real, inference)
    except NotFinite as error:
        raise EvaluationError(message) from error
    if not recon.isfinite().all():
        raise EvaluationError(message)
    return real, recon.float().clamp(*VALUE_RANGE), codes


@torch.no_grad()
def measure(
    tokenizer: AnyTokenizer,
    clip: Clip,
    networks: EvaluationNetworks = EvaluationNetworks(),
    inference: Inference = Inference(),
) -> ClipMeasurement:
    """Reconstructs a clip with the tokenizer and measures the result."""
    real, recon, codes = reconstruct(tokenizer, clip, inference)
    num_frames, height, width = real.shape[2:]
    short_side = min(height, width)
    values: dict[str, Any] = dict.fromkeys(QUALITIES)
    if math.isfinite(decibels := float(psnr(recon, real))):
        values["psnr"] = decibels
    if short_side >= MIN_SIDE:
        values["ssim"] = float(ssim(recon, real))
    if short_side >= MS_SSIM_MIN_SIDE:
        values["ms_ssim"] = float(ms_ssim(recon, real))
    if num_frames > 1:
        error, energy = temporal_consistency(recon, real)
        values |= dict(temporal_error=float(error), motion_energy=float(energy))
    features: dict[str, FeaturePair] = {}
    perceptual, i3d = networks
    if perceptual is not None and (perceptual.resize_to or short_side >= perceptual.trunk.min_size):
        values["perceptual"], features = _perceptual_metrics(perceptual, recon, real)
    if i3d is not None and clip.kind == "video":
        pair = (i3d.features(recon), i3d.features(real))
        features[f"fvd_{i3d.protocol.replace('-', '_')}"] = pair
    if isinstance(tokenizer, Tokenizer1d):
        values["by_tokens"] = _by_tokens(tokenizer, real, inference)
    return ClipMeasurement(values | _rates(tokenizer, clip, codes), codes, features)


def _by_tokens(
    tokenizer: Tokenizer1d, real: Video, inference: Inference
) -> dict[str, dict[str, float]]:
    """PSNR and bits per pixel of a clip by number of tokens."""
    low, high = tokenizer.config.num_tokens
    rows = {}
    for count in count_steps(low, high)[::2]:
        asked = replace(inference, num_tokens=count)
        recon, codes = reconstruct_clip(tokenizer, real, asked)
        bits = codes.numel() * math.log2(tokenizer.codebook_size) / math.prod(real.shape[2:])
        rows[str(count)] = dict(psnr=float(psnr(recon.float(), real)), bits_per_pixel=bits)
    return rows


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


def _rates(
    tokenizer: AnyTokenizer, clip: Clip, codes: Codes | TokenCodes | None
) -> dict[str, float | int | None]:
    num_frames, height, width = clip.frames.shape[:3]
    if isinstance(tokenizer, Tokenizer1d):
        bits = codes.numel() * math.log2(tokenizer.codebook_size) / (num_frames * height * width)
        per_second = None if clip.fps is None else codes.numel() / num_frames * clip.fps
        return dict(bits_per_pixel=bits, tokens=codes.numel(), tokens_per_second=per_second)
    below, right = space_padding(height, width, tokenizer.space_factor)
    grid = tokenizer.latent_grid(num_frames, height + below, width + right)
    tokens, bits = math.prod(grid), None
    if codes is not None:
        tokens, bits_per_position = codes.numel(), tokenizer.quantizer.bits_per_position
        bits = bits_per_pixel(bits_per_position, grid, (num_frames, height, width))
    per_second = None if clip.fps is None else tokens / num_frames * clip.fps
    return dict(bits_per_pixel=bits, tokens=tokens, tokens_per_second=per_second)

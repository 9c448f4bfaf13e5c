"""What is measured of one clip, and of all clips together."""

import math
from typing import NamedTuple

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.data import to_float
from magvit2_pytorch.evaluation.clips import Clip
from magvit2_pytorch.evaluation.files import frames_device
from magvit2_pytorch.evaluation.fvd import I3D
from magvit2_pytorch.evaluation.journal import EvaluationError
from magvit2_pytorch.evaluation.media import DEFAULT_CHUNK_FRAMES
from magvit2_pytorch.evaluation.preprocess import pad_space
from magvit2_pytorch.functional import pad_frames
from magvit2_pytorch.losses import PerceptualLoss
from magvit2_pytorch.losses.perceptual import Features
from magvit2_pytorch.metrics import (
    CodebookUsage,
    FrechetDistance,
    bits_per_pixel,
    ms_ssim,
    psnr,
    ssim,
    temporal_consistency,
)
from magvit2_pytorch.metrics.structural import MIN_SIDE, MS_SSIM_MIN_SIDE
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.tile_size import TileSize
from magvit2_pytorch.types import Codes, Precision, Video

FeaturePair = tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]
"""Of the reconstruction, and of the original."""


class EvaluationNetworks(NamedTuple):
    """Networks that look at reconstructions; what is None is not measured."""

    perceptual: PerceptualLoss | None = None
    i3d: I3D | None = None


class ClipMeasurement(NamedTuple):
    """What one clip gave."""

    values: dict[str, float | int | None]
    """By name; None where it cannot be measured: too small, one frame, no network, no codes, and
    the infinite PSNR of a clip that equals its original."""
    codes: Codes | None
    features: dict[str, FeaturePair]
    """For the Frechet distances, by their name."""


class Totals:
    """What all clips of one kind gave together, where single clips say nothing."""

    def __init__(self, tokenizer: VideoTokenizer, judges: EvaluationNetworks):
        self.judges = judges
        self.usage = None
        if tokenizer.codebook_size is not None:
            self.usage = CodebookUsage(tokenizer.codebook_size, tokenizer.num_codebooks)
        self.distances: dict[str, FrechetDistance] = {}

    def add(self, measured: ClipMeasurement) -> None:
        """Counts the codes of a clip, and adds its features."""
        if self.usage is not None:
            self.usage.update(measured.codes)
        for name, (recon, real) in measured.features.items():
            self._distance(name, recon.shape[1]).update(recon, real)

    def state_dict(self) -> dict[str, Tensor]:
        """All of it; `load_state_dict` goes on from it to the bit."""
        parts = {f"frechet.{name}": it for name, it in self.distances.items()}
        if self.usage is not None:
            parts["usage"] = self.usage
        return {
            f"{part}/{key}": value
            for part, it in parts.items()
            for key, value in it.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replaces what was counted."""
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
            unbiased = self.judges.i3d.way.unbiased if is_fvd else True
            self.distances[name] = FrechetDistance(dim, unbiased)
        return self.distances[name]


@torch.no_grad()
def measure(
    tokenizer: VideoTokenizer,
    clip: Clip,
    judges: EvaluationNetworks,
    precision: Precision = "fp32",
    tile_size: TileSize | None = None,
) -> ClipMeasurement:
    """Takes a clip through the tokenizer and measures what came back.

    That is clamped to [-1, 1] and otherwise measured as it is, without rounding to bytes. Raises
    `EvaluationError` where it is not finite.
    """
    real = to_float(clip.frames.to(tokenizer.device))[None]
    recon, codes, grid = reconstruct_clip(tokenizer, real, precision, tile_size)
    if not recon.isfinite().all():
        advice = "is it damaged?" if precision == "fp32" else "try precision fp32"
        raise EvaluationError(
            f"the reconstruction of {clip.name} holds no finite numbers: {advice}"
        )
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
    perceptual = judges.perceptual
    if perceptual is not None and _sees(perceptual, height, width):
        values["perceptual"], features = _look(perceptual, recon, real)
    if judges.i3d is not None and clip.kind == "video":
        pair = (judges.i3d.features(recon), judges.i3d.features(real))
        features[f"fvd_{judges.i3d.protocol.replace('-', '_')}"] = pair
    values |= _rate(tokenizer, clip, codes, grid, (num_frames, height, width))
    return ClipMeasurement(values, codes, features)


def reconstruct_clip(
    tokenizer: VideoTokenizer, video: Video, precision: Precision, tile_size: TileSize | None
) -> tuple[Video, Codes | None, tuple[int, int, int]]:
    """A clip of any size and number of frames: what is decoded, the codes, and their grid."""
    num_frames, height, width = video.shape[2:]
    padded = pad_frames(pad_space(video, tokenizer.space_factor), tokenizer.time_factor)
    place = frames_device(tokenizer, tile_size)
    options = dict(precision=precision, tile_size=tile_size)
    encoder, decoder = tokenizer.encode_stream(**options), tokenizer.decode_stream(**options)
    step = max(DEFAULT_CHUNK_FRAMES // tokenizer.time_factor, 1) * tokenizer.time_factor
    starts = [0, *range(1 + step, padded.shape[2], step)]
    codes, recon = [], []
    for start, stop in zip(starts, [*starts[1:], padded.shape[2]], strict=True):
        quantized = encoder.push_quantized(padded[:, :, start:stop].to(place))
        codes.append(quantized.codes)
        recon.append(decoder.push(quantized.quantized.to(place)))
    video = torch.cat(recon, dim=2)[:, :, :num_frames, :height, :width].to(tokenizer.device)
    grid = tokenizer.latent_grid(*padded.shape[2:])
    return video, None if codes[0] is None else torch.cat(codes, dim=1), grid


def _look(
    perceptual: PerceptualLoss, recon: Video, real: Video
) -> tuple[float, dict[str, FeaturePair]]:
    """The perceptual distance of a clip, and the features of its last layer.

    Of every frame, averaged over the picture, and how they change from each frame to the next.
    """
    distances, pooled = [], ([], [])
    # One after the other: the features of a frame take a hundred times its memory.
    for frames in zip(recon.unbind(2), real.unbind(2), strict=True):
        found, wanted = (perceptual.features(frame) for frame in frames)
        distances.append(perceptual.distance(found, wanted))
        for rows, features in zip(pooled, (found, wanted), strict=True):
            rows.append(_pooled(features))
    ours, theirs = (torch.cat(rows) for rows in pooled)
    pairs = {"frechet_frames": (ours, theirs)}
    if len(ours) > 1:
        pairs["frechet_motion"] = (ours.diff(dim=0), theirs.diff(dim=0))
    return float(torch.stack(distances).mean()), pairs


def _pooled(features: Features) -> Float[Tensor, "n d"]:
    return reduce(features[-1].float(), "n d h w -> n d", "mean")


def _sees(perceptual: PerceptualLoss, height: int, width: int) -> bool:
    return perceptual.resize_to is not None or min(height, width) >= perceptual.trunk.min_size


def _rate(
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

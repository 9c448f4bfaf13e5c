"""Perceptual losses: LPIPS and ST-LPIPS."""

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.functional import at_least_float32
from magvit2_pytorch.losses.perceptual_networks import FeatureTrunk, load_heads, load_trunk

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of RGB in [0, 1], as the trunks of torchvision and LPIPS were trained."""

NORM_EPS = 1e-8
"""Added to the squared norm of a feature, so that a feature of zeros has a finite gradient. The
value of torchmetrics; LPIPS adds 1e-10 to the norm, and its gradient is not finite there."""

Pictures = Float[Tensor, "b c h w"] | Float[Tensor, "b c t h w"]
TrunkFeatures = tuple[Float[Tensor, "n _ _ _"], ...]


class PerceptualLoss(nn.Module):
    """Distance between trunk features of two videos or batches of images.

    Both are in [-1, 1]. In each output layer of the trunk, features are normalized to length 1 at
    every pixel. Their squared differences are weighted by the head of the layer, summed over
    channels, averaged over pixels and frames, and summed over layers. Without heads every weight is
    1, the baseline of LPIPS. Scores of trunks and heads with another `name` cannot be compared.
    Source: LPIPS (arXiv 1801.03924), equation 1.

    Grey frames are repeated to RGB. RGBA frames are composited over black. With `resize_to`, the
    shorter edge is resized to that many pixels first. The trunk is frozen and runs in the precision
    of autocast, the distance in float32. Only `recon` gets a gradient.
    """

    def __init__(
        self,
        trunk: FeatureTrunk,
        heads: Sequence[Float[Tensor, " _"]] | None = None,
        resize_to: int | None = None,
    ):
        super().__init__()
        if heads is not None and [len(head) for head in heads] != trunk.dims:
            raise ValueError(
                f"heads have {[len(head) for head in heads]} weights, "
                f"but {trunk.name} has {trunk.dims} channels"
            )
        if resize_to is not None and resize_to < trunk.min_size:
            raise ValueError(
                f"resize_to is {resize_to}: {trunk.name} needs {trunk.min_size} pixels"
            )
        self.trunk = trunk
        self.heads = None if heads is None else nn.ParameterList(heads)
        self.resize_to = resize_to
        self.register_buffer("mean", _per_channel(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", _per_channel(IMAGENET_STD), persistent=False)
        self.requires_grad_(False).eval()

    @property
    def name(self) -> str:
        if self.heads is None:
            return f"{self.trunk.name} features"
        if self.trunk.name.startswith("st_"):
            return f"ST-LPIPS ({self.trunk.name.removeprefix('st_')})"
        return f"LPIPS ({self.trunk.name})"

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Does nothing: the trunk always stays in eval mode."""
        return super().train(False)

    def forward(self, recon: Pictures, real: Pictures) -> Float[Tensor, ""]:
        if recon.shape != real.shape:
            raise ValueError(f"recon {tuple(recon.shape)} and real {tuple(real.shape)} differ")
        with torch.no_grad():
            real_features = self.features(real)
        return self.distance(self.features(recon), real_features)

    def features(self, pictures: Pictures) -> TrunkFeatures:
        """Features of every frame, one tensor per output layer of the trunk."""
        return self.trunk(self._prepare(pictures))

    def distance(self, recon: TrunkFeatures, real: TrunkFeatures) -> Float[Tensor, ""]:
        """Computes the loss from the features of both sides."""
        heads = self.heads or [None] * len(recon)
        terms = [_distance(*layer) for layer in zip(recon, real, heads, strict=True)]
        return torch.stack(terms).sum()

    def _prepare(self, pictures: Pictures) -> Float[Tensor, "n 3 y x"]:
        """Converts to normalized RGB frames of a size that the trunk accepts."""
        if pictures.ndim == 5:
            pictures = rearrange(pictures, "b c t h w -> (b t) c h w")
        channels = pictures.shape[1]
        if channels not in (1, 3, 4):
            raise ValueError(f"{channels} channels: a trunk takes 1 (grey), 3 (RGB) or 4 (RGBA)")
        x = (at_least_float32(pictures) + 1) / 2
        if channels == 1:
            x = repeat(x, "n 1 h w -> n c h w", c=3)
        elif channels == 4:
            x = x[:, :3] * x[:, 3:]
        return self._resize((x - self.mean) / self.std)

    def _resize(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 y x"]:
        height, width = x.shape[-2:]
        if self.resize_to is not None:
            scale = self.resize_to / min(height, width)
            size = (round(height * scale), round(width * scale))
            return F.interpolate(x, size, mode="bilinear", antialias=True)
        if min(height, width) < self.trunk.min_size:
            raise ValueError(
                f"frames of {height}x{width} are too small for {self.trunk.name}, which needs "
                f"{self.trunk.min_size} pixels: give resize_to=64 or more"
            )
        return x


def build_perceptual(
    weights: str | Path, heads: str | Path | None = None, resize_to: int | None = None
) -> PerceptualLoss:
    """Builds the loss from a file of weights or torchvision's.

    The file is a vgg16 or alexnet of torchvision, LPIPS or ST-LPIPS; "torchvision:vgg16" and
    "torchvision:alexnet" are downloaded. `heads` is a file with the heads of LPIPS, or
    "torchmetrics" for the one in that package. Loading a file never executes code. Raises as
    `load_trunk`.
    """
    trunk, own_heads = load_trunk(weights)
    return PerceptualLoss(
        trunk, own_heads if heads is None else load_heads(heads, trunk), resize_to
    )


def _distance(
    recon: Float[Tensor, "n c h w"],
    real: Float[Tensor, "n c h w"],
    head: Float[Tensor, " c"] | None,
) -> Float[Tensor, ""]:
    squares = (_normalize(recon) - _normalize(real)).square()
    if head is not None:
        squares = squares * head[:, None, None]
    return squares.sum(dim=1).mean()


def _normalize(features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    features = at_least_float32(features)
    return features * (features.square().sum(dim=1, keepdim=True) + NORM_EPS).rsqrt()


def _per_channel(values: tuple[float, ...]) -> Float[Tensor, "1 3 1 1"]:
    return rearrange(torch.tensor(values), "c -> 1 c 1 1")

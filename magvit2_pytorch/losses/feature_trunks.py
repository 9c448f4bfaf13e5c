"""Convolutional trunks of VGG16 and AlexNet, for perceptual losses.

Parameter names are those of torchvision (`features.N.weight`); torchvision is not required.
"""

from collections.abc import Callable, Sequence

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.registry import Registry


class FeatureTrunk(nn.Module):
    """Stack of layers that returns the outputs of the layers in `taps`."""

    def __init__(self, name: str, layers: Sequence[nn.Module], taps: Sequence[int], min_size: int):
        super().__init__()
        self.name = name
        self.taps = tuple(taps)
        self.min_size = min_size
        """Shortest edge of a frame, in pixels, that every layer can process."""
        self.features = nn.Sequential(*layers)

    @property
    def dims(self) -> list[int]:
        """Channels of each output."""
        convs = [m for m in self.features if isinstance(m, nn.Conv2d)]
        ends = [
            sum(isinstance(m, nn.Conv2d) for m in self.features[: tap + 1]) for tap in self.taps
        ]
        return [convs[end - 1].out_channels for end in ends]

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n _ _ _"], ...]:
        outputs = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                outputs.append(x)
        return tuple(outputs)


TRUNKS: Registry[Callable[[], FeatureTrunk]] = Registry("feature trunk")


class PaddedBlurPool(nn.Module):
    """Blur and subsampling by 2, with a reflection padding of 2 pixels.

    The filter is [1, 2, 1] / 4 on both axes. A size n becomes (n + 1) // 2 + 1. One pixel of
    padding would be enough for the filter; with 2 the output changes less under shifts.
    Sources: ST-LPIPS (arXiv 2207.13686), section 3; Zhang (arXiv 1904.11486).
    """

    def __init__(self, dim: int):
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filt", repeat(torch.outer(taps, taps), "h w -> c 1 h w", c=dim))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c y x"]:
        x = F.pad(x, (2, 2, 2, 2), mode="reflect")
        return F.conv2d(x, self.filt, stride=2, groups=x.shape[1])


@TRUNKS.register("vgg16")
def vgg16() -> FeatureTrunk:
    """VGG16 (arXiv 1409.1556, column D) after relu 1_2, 2_2, 3_3, 4_3, 5_3."""
    return _vgg16("vgg16", lambda dim: [nn.MaxPool2d(2)], min_size=16)


@TRUNKS.register("st_vgg16")
def st_vgg16() -> FeatureTrunk:
    """VGG16 of ST-LPIPS: pooling is a maximum with stride 1, then `PaddedBlurPool`."""
    return _vgg16(
        "st_vgg16", lambda dim: [nn.MaxPool2d(2, stride=1), PaddedBlurPool(dim)], min_size=18
    )


def _vgg16(name: str, pool: Callable[[int], list[nn.Module]], min_size: int) -> FeatureTrunk:
    layers, taps, dim = [], [], 3
    for block in ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3):
        layers += pool(dim) if taps else []
        for dim_out in block:
            layers += [nn.Conv2d(dim, dim_out, 3, padding=1), nn.ReLU(inplace=True)]
            dim = dim_out
        taps.append(len(layers) - 1)
    return FeatureTrunk(name, layers, taps, min_size)


@TRUNKS.register("alexnet")
def alexnet() -> FeatureTrunk:
    """AlexNet after each of its five convolutions (arXiv 1404.5997, one column)."""
    first = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True)]
    return _alexnet("alexnet", first, lambda dim: [nn.MaxPool2d(3, stride=2)], min_size=31)


@TRUNKS.register("st_alexnet")
def st_alexnet() -> FeatureTrunk:
    """AlexNet of ST-LPIPS: blurred strides, in total 8 instead of 16."""
    first = [nn.Conv2d(3, 64, 11, padding=2), PaddedBlurPool(64), nn.ReLU(inplace=True)]

    def pool(dim: int) -> list[nn.Module]:
        return [nn.MaxPool2d(3, stride=1), PaddedBlurPool(dim)]

    return _alexnet("st_alexnet", first, pool, min_size=21)


def _alexnet(
    name: str, first: list[nn.Module], pool: Callable[[int], list[nn.Module]], min_size: int
) -> FeatureTrunk:
    layers, taps = [*first], [len(first) - 1]
    for pooling, dim, dim_out, kernel_size in (
        (pool(64), 64, 192, 5),
        (pool(192), 192, 384, 3),
        ([], 384, 256, 3),
        ([], 256, 256, 3),
    ):
        conv = nn.Conv2d(dim, dim_out, kernel_size, padding=kernel_size // 2)
        layers += [*pooling, conv, nn.ReLU(inplace=True)]
        taps.append(len(layers) - 1)
    return FeatureTrunk(name, layers, taps, min_size)

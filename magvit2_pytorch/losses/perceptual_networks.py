"""Frozen networks of the perceptual loss, and their weights in files."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.weights import Tensors, mismatches, read_tensors


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
        return [
            [m.out_channels for m in self.features[: tap + 1] if isinstance(m, nn.Conv2d)][-1]
            for tap in self.taps
        ]

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n _ _ _"], ...]:
        outputs = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                outputs.append(x)
        return tuple(outputs)


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


def vgg16(blurred: bool = False) -> FeatureTrunk:
    """VGG16 (arXiv 1409.1556, column D) after relu 1_2, 2_2, 3_3, 4_3, 5_3.

    If `blurred`, that of ST-LPIPS: a pooling is a maximum with stride 1, then `PaddedBlurPool`.
    """
    layers, taps, dim = [], [], 3
    for block in ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3):
        layers += _pool(2, dim, blurred) if taps else []
        for dim_out in block:
            layers += [nn.Conv2d(dim, dim_out, 3, padding=1), nn.ReLU(inplace=True)]
            dim = dim_out
        taps.append(len(layers) - 1)
    return FeatureTrunk("st_vgg16" if blurred else "vgg16", layers, taps, 18 if blurred else 16)


def alexnet(blurred: bool = False) -> FeatureTrunk:
    """AlexNet (arXiv 1404.5997) after its five convolutions; `blurred`: of ST-LPIPS."""
    first = nn.Conv2d(3, 64, 11, stride=1 if blurred else 4, padding=2)
    layers = [first, *[PaddedBlurPool(64)] * blurred, nn.ReLU(inplace=True)]
    taps, dim = [len(layers) - 1], 64
    for dim_out, kernel_size in ((192, 5), (384, 3), (256, 3), (256, 3)):
        layers += _pool(3, dim, blurred) if len(taps) < 3 else []
        conv = nn.Conv2d(dim, dim_out, kernel_size, padding=kernel_size // 2)
        layers += [conv, nn.ReLU(inplace=True)]
        taps.append(len(layers) - 1)
        dim = dim_out
    return FeatureTrunk("st_alexnet" if blurred else "alexnet", layers, taps, 21 if blurred else 31)


def _pool(size: int, dim: int, blurred: bool) -> list[nn.Module]:
    if blurred:
        return [nn.MaxPool2d(size, stride=1), PaddedBlurPool(dim)]
    return [nn.MaxPool2d(size, stride=2)]


TRUNKS: dict[str, Callable[[], FeatureTrunk]] = {
    "vgg16": vgg16,
    "st_vgg16": partial(vgg16, blurred=True),
    "alexnet": alexnet,
    "st_alexnet": partial(alexnet, blurred=True),
}

Heads = list[Float[Tensor, " _"]]

ACCEPTED = (
    "a .pth or .safetensors state dict of torchvision's vgg16 or alexnet, of LPIPS or of "
    "ST-LPIPS with their trunk"
)
TRUNK_KEY = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.(.+)")
"""LPIPS splits the layers of torchvision into slices, but keeps their numbers."""
HEAD_KEY = re.compile(r"lin(\d)\.model\.\d\.weight")


def load_trunk(source: str | Path) -> tuple[FeatureTrunk, Heads | None]:
    """Loads a trunk, and the LPIPS heads if the file contains them.

    The trunk is recognized by names and shapes. "torchvision:vgg16" (528 MB) and
    "torchvision:alexnet" (233 MB) are downloaded, once, into the cache of torch. Raises
    `ValueError` on a file of another kind, on missing or unexpected layers, and on a file that
    could execute code.
    """
    if str(source).startswith("torchvision:"):
        state, source = _download(str(source).removeprefix("torchvision:"))
    else:
        state = read_tensors(source, ACCEPTED)
    layers = {
        f"features.{match[1]}.{match[2]}": tensor
        for key, tensor in state.items()
        if (match := TRUNK_KEY.fullmatch(key))
    }
    name = _trunk_name(layers, str(source))
    # On the meta device: no memory, and no draws from the global random generator.
    with torch.device("meta"):
        trunk = TRUNKS[name]()
    expected = {key: tensor.shape for key, tensor in trunk.state_dict().items()}
    if mismatch := mismatches(layers, expected):
        raise ValueError(f"{source} is not a {name}: it {mismatch}; use {ACCEPTED}")
    # Copies: the file may change while the loss is in use.
    contiguous = dict(memory_format=torch.contiguous_format)
    layers = {key: tensor.float().clone(**contiguous) for key, tensor in layers.items()}
    trunk.load_state_dict(layers, assign=True)
    has_heads = any(HEAD_KEY.fullmatch(key) for key in state)
    return trunk, heads_from_state(state, trunk, str(source)) if has_heads else None


def load_heads(path: str | Path, trunk: FeatureTrunk) -> Heads:
    """Loads a trunk's LPIPS heads from a file or the package "torchmetrics"."""
    if str(path) == "torchmetrics":
        path = _torchmetrics_heads(trunk)
    return heads_from_state(read_tensors(path, ACCEPTED), trunk, str(path))


def heads_from_state(state: Tensors, trunk: FeatureTrunk, source: str) -> Heads:
    """Extracts LPIPS heads from a state dict that errors call `source`."""
    heads = {
        f"lin{m[1]}": tensor for key, tensor in state.items() if (m := HEAD_KEY.fullmatch(key))
    }
    expected = {f"lin{index}": (1, dim, 1, 1) for index, dim in enumerate(trunk.dims)}
    if mismatch := mismatches(heads, expected):
        raise ValueError(f"{source} contains no LPIPS heads for {trunk.name}: it {mismatch}")
    return [heads[name].float().flatten() for name in expected]


def _download(name: str) -> tuple[Tensors, str]:
    """ImageNet weights of torchvision, and their address."""
    known = {"vgg16": "VGG16_Weights", "alexnet": "AlexNet_Weights"}
    if name not in known:
        raise ValueError(f"torchvision:{name} is not available: use {' or '.join(known)}")
    advice = f"give the path of a file instead: {ACCEPTED}"
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise ImportError(
            f"torchvision does not work here ({error}): install it, or {advice}"
        ) from error
    weights = getattr(models, known[name]).IMAGENET1K_V1
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:  # includes the errors of urllib
        raise ConnectionError(f"cannot download {weights.url} ({error}): {advice}") from error
    return state, weights.url


def _trunk_name(layers: Tensors, source: str) -> str:
    first = layers.get("features.0.weight")
    shapes = {(64, 3, 3, 3): "vgg16", (64, 3, 11, 11): "alexnet"}
    name = None if first is None else shapes.get(tuple(first.shape))
    if name is None:
        state = "is missing" if first is None else f"is {tuple(first.shape)}"
        raise ValueError(
            f"{source} contains no trunk: features.0.weight {state}, and should be "
            f"{' or '.join(map(str, shapes))}; use {ACCEPTED}"
        )
    # Only the shift-tolerant trunks have blur filters.
    return f"st_{name}" if any(key.endswith(".filt") for key in layers) else name


def _torchmetrics_heads(trunk: FeatureTrunk) -> Path:
    # torchmetrics contains the heads of LPIPS 0.1; LPIPS abbreviates the names of the trunks.
    file = {"vgg16": "vgg.pth", "alexnet": "alex.pth"}.get(trunk.name)
    if file is None:
        raise ValueError(f"torchmetrics has no heads for {trunk.name}: use those in its file")
    spec = find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        raise ImportError("torchmetrics is not installed: give the path of a file with heads")
    return Path(spec.origin).parent / "functional" / "image" / "lpips_models" / file

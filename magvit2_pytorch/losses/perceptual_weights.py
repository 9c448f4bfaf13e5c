"""Trunks and heads of a perceptual loss from files, which never run code."""

import re
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from magvit2_pytorch.losses.feature_trunks import TRUNKS, FeatureTrunk
from magvit2_pytorch.state_file import Tensors, mismatches, read_tensors

Heads = list[Float[Tensor, " _"]]

ACCEPTED = (
    "a .pth or .safetensors state dict of torchvision's vgg16 or alexnet, of LPIPS or of "
    "ST-LPIPS with their trunk"
)
TRUNK_KEY = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.(.+)")
"""torchvision numbers its layers, and so do the slices that LPIPS cuts them into."""
HEAD_KEY = re.compile(r"lin(\d)\.model\.\d\.weight")


def load_trunk(path: str | Path) -> tuple[FeatureTrunk, Heads | None]:
    """A trunk, and the LPIPS heads where the file holds them too.

    Which trunk it is, its shapes and names tell. Raises `ValueError` on a file that is none
    of what is accepted, that lacks a layer or has one too many, or that would run code.
    """
    return trunk_from_state(read_tensors(path, ACCEPTED), str(path))


def trunk_from_state(state: Tensors, source: str) -> tuple[FeatureTrunk, Heads | None]:
    """The same of a state dict that came from `source`."""
    layers = {
        f"features.{match[1]}.{match[2]}": tensor
        for key, tensor in state.items()
        if (match := TRUNK_KEY.fullmatch(key))
    }
    name = _trunk_name(layers, source)
    # Without memory or random numbers: the run's own draws stay as they are.
    with torch.device("meta"):
        trunk = TRUNKS[name]()
    wrong = mismatches(layers, {key: tensor.shape for key, tensor in trunk.state_dict().items()})
    if wrong:
        raise ValueError(f"{source} is no {name}: it {wrong}; use {ACCEPTED}")
    # Copies: the file may change while the loss is in use.
    contiguous = dict(memory_format=torch.contiguous_format)
    layers = {key: tensor.float().clone(**contiguous) for key, tensor in layers.items()}
    trunk.load_state_dict(layers, assign=True)
    has_heads = any(HEAD_KEY.fullmatch(key) for key in state)
    return trunk, heads_from_state(state, trunk, source) if has_heads else None


def load_heads(path: str | Path, trunk: FeatureTrunk) -> Heads:
    """LPIPS's heads for a trunk: one weight a channel for each of its outputs.

    "torchmetrics" stands for the file that this package brings along.
    """
    if str(path) == "torchmetrics":
        path = _torchmetrics_heads(trunk)
    return heads_from_state(read_tensors(path, ACCEPTED), trunk, str(path))


def heads_from_state(state: Tensors, trunk: FeatureTrunk, source: str) -> Heads:
    """The same of a state dict that came from `source`."""
    found = {
        int(match[1]): tensor for key, tensor in state.items() if (match := HEAD_KEY.fullmatch(key))
    }
    wanted = {place: (1, dim, 1, 1) for place, dim in enumerate(trunk.dims)}
    shapes = {place: tuple(tensor.shape) for place, tensor in sorted(found.items())}
    if shapes != wanted:
        raise ValueError(
            f"{source} holds no LPIPS heads for {trunk.name}: its lin0 to lin{len(wanted) - 1} "
            f"should be {list(wanted.values())}, and it has {shapes or 'none'}"
        )
    return [found[place].float().flatten() for place in wanted]


def download_trunk(name: str) -> FeatureTrunk:
    """ImageNet weights of "vgg16" (528 MB) or "alexnet" (233 MB), through torchvision.

    The one function here that goes to the network; a second call finds them in torch's cache.
    """
    known = {"vgg16": "VGG16_Weights", "alexnet": "AlexNet_Weights"}
    if name not in known:
        raise ValueError(f"torchvision:{name} is not a trunk here: use {' or '.join(known)}")
    advice = f"give the path of a file instead: {ACCEPTED}"
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # one that does not fit torch raises the latter
        raise ImportError(
            f"torchvision does not work here ({error}): install it, or {advice}"
        ) from error
    weights = getattr(models, known[name]).IMAGENET1K_V1
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:  # of which urllib's errors are a kind
        raise ConnectionError(f"cannot download {weights.url} ({error}): {advice}") from error
    return trunk_from_state(state, weights.url)[0]


def _trunk_name(layers: Tensors, source: str) -> str:
    first = layers.get("features.0.weight")
    shapes = {(64, 3, 3, 3): "vgg16", (64, 3, 11, 11): "alexnet"}
    name = None if first is None else shapes.get(tuple(first.shape))
    if name is None:
        what = "has none" if first is None else f"is {tuple(first.shape)}"
        raise ValueError(
            f"{source} holds no trunk: features.0.weight {what}, and should be "
            f"{' or '.join(map(str, shapes))}; use {ACCEPTED}"
        )
    # Filters that blur are what the shift-tolerant trunks, and no others, have.
    return f"st_{name}" if any(key.endswith(".filt") for key in layers) else name


def _torchmetrics_heads(trunk: FeatureTrunk) -> Path:
    # torchmetrics ships the heads of LPIPS 0.1 under its own and LPIPS's names for the trunks.
    file = {"vgg16": "vgg.pth", "alexnet": "alex.pth"}.get(trunk.name)
    if file is None:
        raise ValueError(f"torchmetrics has no heads for {trunk.name}: use those of its own file")
    spec = find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        raise ImportError("torchmetrics is not installed: give the path of a file with heads")
    return Path(spec.origin).parent / "functional" / "image" / "lpips_models" / file

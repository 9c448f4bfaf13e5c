"""Inflation: a tokenizer initialized from one for images, or for smaller frames."""

import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from itertools import pairwise

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from magvit2_pytorch.layers.conv import CausalConv3d
from magvit2_pytorch.layers.resample import DepthToSpace, SpaceToDepth, enlarged_patch
from magvit2_pytorch.layers.stateful import Chain
from magvit2_pytorch.quantizers.continuous import Continuous
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.tokenizer_config import INFLATABLE, TokenizerConfig


def enlarged(tokenizer: VideoTokenizer, scale: int, codes_of: str | None = None) -> VideoTokenizer:
    """A tokenizer with the same codes, of frames `scale` times as large.

    Its patches are larger by `scale`, and its weights those of `inflate_into`; its decoder is to be
    trained, with `freeze_encoder`. `codes_of` is the fingerprint of `tokenizer`, so that its stored
    codes and generators are accepted.
    """
    (time, space), sides = tokenizer.config.patch, tokenizer.config.height_and_width
    options = tokenizer.config.to_dict() | dict(
        patch_size=(time, space * scale),
        image_size=tuple(side * scale for side in sides),
        codes_of=codes_of,
    )
    larger = VideoTokenizer(**options)
    inflate_into(larger, tokenizer)
    return larger


@torch.no_grad()
def inflate_into(tokenizer: VideoTokenizer, source: VideoTokenizer) -> None:
    """Initializes `tokenizer` from `source`, which has the same layers and compresses less.

    From an image tokenizer, or one that compresses time less: a temporal kernel gets the image
    kernel as its last tap, for the current frame, and zeros for the past. Where channels become
    frames, every frame gets the image weights; where frames become channels, all but the newest
    frame get zeros. So both tokenizers reconstruct an image alike, and a latent of a clip is that
    of its newest frame; with convolutions only, exactly.

    From a tokenizer whose patches have fewer pixels: the encoder reads the mean of the pixels that
    take the place of one, so that latents are those of smaller frames, exactly but for rounding,
    and the decoder draws patches enlarged by bicubic interpolation.

    Raises `ValueError`, and changes nothing, if the tokenizers do not fit. Source of the former:
    MAGVIT-v2 (arXiv 2310.05737).
    """
    _check_compatible(tokenizer.config, source.config)
    inflated = {}
    weights, resizers = source.state_dict(), _patch_conv_resizers(tokenizer)
    enlargers = _enlargers(tokenizer, source.config, resizers)
    for name, target in tokenizer.state_dict().items():
        if (theirs := name) not in weights:  # a convolution without patches is in no chain
            theirs = re.sub(r"\.layers\.[01]\.conv\.", ".conv.", name)
        if theirs not in weights:
            raise ValueError(f"the tokenizer to start from has no {name}: its layers differ")
        weight = weights.pop(theirs).to(target)
        module = name.rpartition(".")[0]
        if enlarge := enlargers.get(module):
            weight = enlarge(weight)
        if resize := resizers.get(module):
            weight = resize(weight, target)
        inflated[name] = _pad_taps(weight, target)
        if inflated[name].shape != target.shape:
            raise ValueError(
                f"{name} is {tuple(weight.shape)} in the tokenizer to start from, and cannot "
                f"become {tuple(target.shape)}: besides patches, sizes may differ only along time"
            )
    if weights:
        raise ValueError(
            f"the tokenizer to start from has {sorted(weights)[0]}, which this one does not have: "
            "its layers differ"
        )
    tokenizer.load_state_dict(inflated)
    if isinstance(tokenizer.quantizer, Continuous) and tokenizer.time_factor != source.time_factor:
        tokenizer.quantizer.reset_statistics()  # they were measured on images


def _check_compatible(ours: TokenizerConfig, theirs: TokenizerConfig) -> None:
    differences = [
        f"{field.name} ({getattr(theirs, field.name)!r}, here {getattr(ours, field.name)!r})"
        for field in fields(ours)
        if getattr(theirs, field.name) != getattr(ours, field.name) and field.metadata != INFLATABLE
    ]
    if ours.space_factor != theirs.space_factor * _patch_scale(ours, theirs):
        factors = f"({theirs.space_factor}, here {ours.space_factor})"
        differences.append(f"compression in space {factors}")
    if differences:
        raise ValueError(f"the tokenizer to start from differs in {', '.join(differences)}")
    if ours.separate_first_frame_encoding and ours.time_factor != theirs.time_factor:
        raise ValueError(
            "separate_first_frame_encoding: images train only the convolutions of the first frame, "
            "so there is nothing to inflate for the others"
        )


def _patch_scale(ours: TokenizerConfig, theirs: TokenizerConfig) -> int:
    """Pixels of our patches to one of theirs; 1 if no whole number fits."""
    scale, rest = divmod(ours.patch[1], theirs.patch[1])
    return 1 if rest else scale


def _patch_conv_resizers(tokenizer: nn.Module) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Functions that resize convolutions next to patches, by module name."""
    resizers = {}
    for name, chain in tokenizer.named_modules():
        if not isinstance(chain, Chain):
            continue
        for number, (layer, following) in enumerate(pairwise(chain.layers)):
            if isinstance(layer, CausalConv3d) and isinstance(following, DepthToSpace):
                resizers[f"{name}.layers.{number}.conv"] = _repeat_outputs
            if isinstance(layer, SpaceToDepth) and isinstance(following, CausalConv3d):
                resizers[f"{name}.layers.{number + 1}.conv"] = _zero_older_inputs
    return resizers


def _enlargers(
    tokenizer: VideoTokenizer, theirs: TokenizerConfig, next_to_patches: Iterable[str]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions that enlarge convolutions next to patches, by module name."""
    config, size = tokenizer.config, theirs.patch[1]
    scale = _patch_scale(config, theirs)
    if scale == 1:
        return {}
    matrix = enlarged_patch(size, scale, config.lapped_patches)
    sides = dict(p=size, q=size, c=config.channels)

    def read_means(weight: Tensor) -> Tensor:
        if weight.ndim == 1:
            return weight
        return repeat(
            rearrange(weight / scale**2, "d (r p q c) ... -> d r p q c ...", **sides),
            "d r p q c ... -> d (r p i q j c) ...",
            i=scale,
            j=scale,
        )

    def draw_enlarged(weight: Tensor) -> Tensor:
        patches = rearrange(weight, "(r p q c) ... -> r p q c ...", **sides)
        enlarged = einsum(
            matrix.to(weight), matrix.to(weight), patches, "y p, x q, r p q c ... -> r y x c ..."
        )
        return rearrange(enlarged, "r y x c ... -> (r y x c) ...")

    first, last = "encoder.layers.0.", f"decoder.layers.{len(tokenizer.decoder.layers) - 1}."
    return {
        name: read_means if name.startswith(first) else draw_enlarged
        for name in next_to_patches
        if name.startswith((first, last))
    }


def _repeat_outputs(weight: Tensor, target: Tensor) -> Tensor:
    """The output channels repeated for each frame; patches are frame-major."""
    repeats = max(target.shape[0] // weight.shape[0], 1)
    return weight.repeat(repeats, *[1] * (weight.ndim - 1))


def _zero_older_inputs(weight: Tensor, target: Tensor) -> Tensor:
    """The weight for the newest (last) frame of a patch, zeros before."""
    if weight.ndim == 1 or weight.shape[1] >= target.shape[1]:
        return weight
    older = target.shape[1] - weight.shape[1]
    return torch.cat((weight.new_zeros(weight.shape[0], older, *weight.shape[2:]), weight), dim=1)


def _pad_taps(weight: Tensor, target: Tensor) -> Tensor:
    """The kernel as the last taps of a longer one, zeros before."""
    if weight.ndim != 5 or weight.shape[2] >= target.shape[2]:
        return weight
    earlier = target.shape[2] - weight.shape[2]
    zeros = weight.new_zeros(*weight.shape[:2], earlier, *weight.shape[3:])
    return torch.cat((zeros, weight), dim=2)

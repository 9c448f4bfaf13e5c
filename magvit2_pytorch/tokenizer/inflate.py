"""Stage I to stage II: the weights of an image tokenizer as the start of a video tokenizer."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from magvit2_pytorch.layers.conv import CausalConv3d
from magvit2_pytorch.layers.patch import DepthToSpace, SpaceToDepth
from magvit2_pytorch.layers.stateful import Chain
from magvit2_pytorch.quantizers import Continuous
from magvit2_pytorch.tokenizer.config import TokenizerConfig
from magvit2_pytorch.tokenizer.model import VideoTokenizer

MAY_DIFFER = frozenset(
    {
        "image_size",
        "layers",
        "patch_size",
        "residual_conv_kernel_size",
        "input_conv_kernel_size",
        "latent_conv_kernel_size",
        "output_conv_kernel_size",
        "attn_dropout",
        "kl_loss_weight",
        "lfq_entropy_loss_weight",
        "lfq_entropy_eps",
        "lfq_entropy_anneal_factor",
        "lfq_entropy_anneal_steps",
        "lfq_commitment_loss_weight",
    }
)
"""Options that change no weight, or weights only as inflation knows how to."""


@torch.no_grad()
def inflate_into(tokenizer: VideoTokenizer, source: VideoTokenizer) -> None:
    """Starts `tokenizer` from `source`, which has the same layers without (or with less) time.

    A kernel over time gets the picture's kernel as its last tap, the one on the present frame,
    and zeros for the past. Where channels become frames, each frame gets the weights that made the
    one; where frames become channels, only the newest counts. So an image comes out as from the
    image tokenizer, a latent of a clip is that of its newest frame, and the latents of a clip that
    stands still are all the same: exactly so with convolutions only, not with attention over time.
    With equal layers weights are copied. Raises `ValueError`, with nothing changed, where the two
    do not go together.
    Source: MAGVIT-v2 (arXiv 2310.05737); the last tap instead of v1's middle one.
    """
    _check_related(tokenizer.config, source.config)
    inflated = {}
    weights, reblocked = source.state_dict(), _convs_beside_blocks(tokenizer)
    for name, wanted in tokenizer.state_dict().items():
        if name not in weights:
            raise ValueError(f"the tokenizer to start from has no {name}: its layers differ")
        weight = weights.pop(name).to(wanted)
        if reblock := reblocked.get(name.rpartition(".")[0]):
            weight = reblock(weight, wanted)
        inflated[name] = _fit_taps(weight, wanted)
        if inflated[name].shape != wanted.shape:
            raise ValueError(
                f"{name} is {tuple(weight.shape)} in the tokenizer to start from, and cannot "
                f"become {tuple(wanted.shape)}: sizes may differ along time only"
            )
    if weights:
        raise ValueError(
            f"the tokenizer to start from has {sorted(weights)[0]}, for which this one has no "
            "place: its layers differ"
        )
    tokenizer.load_state_dict(inflated)
    if isinstance(tokenizer.quantizer, Continuous) and tokenizer.time_factor != source.time_factor:
        tokenizer.quantizer.reset_statistics()  # measured of images


def _check_related(ours: TokenizerConfig, theirs: TokenizerConfig) -> None:
    values = ((n, getattr(theirs, n), value) for n, value in vars(ours).items())
    differ = [
        f"{n} ({there!r}, here {here!r})"
        for n, there, here in values
        if there != here and n not in MAY_DIFFER
    ]
    if ours.space_factor != theirs.space_factor:
        differ.append(f"compression in space ({theirs.space_factor}, here {ours.space_factor})")
    if differ:
        raise ValueError(f"the tokenizer to start from differs in {', '.join(differ)}")
    if ours.separate_first_frame_encoding and ours.time_factor != theirs.time_factor:
        raise ValueError(
            "separate_first_frame_encoding: images train the first frame's own convolutions and "
            "leave those of the others as they were, so there is nothing to inflate"
        )


def _convs_beside_blocks(tokenizer: nn.Module) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Names of convolutions whose channels are blocks of frames, with what makes them more."""
    found = {}
    for name, chain in tokenizer.named_modules():
        if not isinstance(chain, Chain):
            continue
        for number, (layer, following) in enumerate(pairwise(chain.layers)):
            if isinstance(layer, CausalConv3d) and isinstance(following, DepthToSpace):
                found[f"{name}.layers.{number}.conv"] = _repeat_outputs
            if isinstance(layer, SpaceToDepth) and isinstance(following, CausalConv3d):
                found[f"{name}.layers.{number + 1}.conv"] = _newest_inputs
    return found


def _repeat_outputs(weight: Tensor, wanted: Tensor) -> Tensor:
    """Blocks are frame-major: the whole set of channels once for each frame."""
    repeats = max(wanted.shape[0] // weight.shape[0], 1)
    return weight.repeat(repeats, *[1] * (weight.ndim - 1))


def _newest_inputs(weight: Tensor, wanted: Tensor) -> Tensor:
    """The newest frame of a block comes last; the first frame of a video fills its block."""
    if weight.ndim == 1 or weight.shape[1] >= wanted.shape[1]:
        return weight
    older = wanted.shape[1] - weight.shape[1]
    return torch.cat((weight.new_zeros(weight.shape[0], older, *weight.shape[2:]), weight), dim=1)


def _fit_taps(weight: Tensor, wanted: Tensor) -> Tensor:
    """The kernel as the last taps of one that reaches further into the past."""
    if weight.ndim != 5 or weight.shape[2] >= wanted.shape[2]:
        return weight
    earlier = wanted.shape[2] - weight.shape[2]
    zeros = weight.new_zeros(*weight.shape[:2], earlier, *weight.shape[3:])
    return torch.cat((zeros, weight), dim=2)

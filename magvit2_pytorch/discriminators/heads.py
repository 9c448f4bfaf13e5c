"""Heads from a feature map to one logit per clip or patch."""

from math import prod
from typing import Literal, get_args

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.layers.arithmetic import CONVS, Linear

HeadName = Literal["pooled", "patch", "fixed"]


class PooledHead(nn.Module):
    """One logit from the mean of a map of any size."""

    def __init__(self, dim: int):
        super().__init__()
        self.to_logit = build_mlp(dim, dim)

    def forward(self, x: Float[Tensor, "b d ..."]) -> Float[Tensor, " b"]:
        return self.to_logit(x.flatten(2).mean(2)).squeeze(1)


class PatchHead(nn.Module):
    """One logit at every position of the map.

    Source: PatchGAN, Image-to-Image Translation (arXiv 1611.07004).
    """

    def __init__(self, num_axes: int, dim: int):
        super().__init__()
        self.to_logits = CONVS[num_axes](dim, 1, 1)

    def forward(self, x: Float[Tensor, "b d ..."]) -> Float[Tensor, "b ..."]:
        return self.to_logits(x).squeeze(1)


class FixedHead(nn.Module):
    """One logit from the full map, for inputs of one size.

    Source: the code of O2-MAGVIT2.
    """

    def __init__(self, dim: int, input_size: tuple[int, ...], num_halvings: int):
        super().__init__()
        self.input_size = input_size
        self.map_size = input_size
        for _ in range(num_halvings):
            self.map_size = tuple(-(-size // 2) for size in self.map_size)
        self.to_logit = build_mlp(prod(self.map_size) * dim, dim)

    def forward(self, x: Float[Tensor, "b d ..."]) -> Float[Tensor, " b"]:
        if x.shape[2:] != self.map_size:
            raise ValueError(
                f"the map has size {tuple(x.shape[2:])}, but head 'fixed' has weights for "
                f"{self.map_size}: give views of size {self.input_size}, or use head 'pooled'"
            )
        return self.to_logit(rearrange(x, "b ... -> b (...)")).squeeze(1)


def build_mlp(dim_in: int, dim: int) -> nn.Sequential:
    """Builds a hidden layer of `dim` channels and a logit."""
    return nn.Sequential(Linear(dim_in, dim), nn.LeakyReLU(0.2), Linear(dim, 1))


def build_head(
    head: HeadName, num_axes: int, dim: int, input_size: tuple[int, ...] | None, num_halvings: int
) -> nn.Module:
    """Builds a head by name; only "fixed" takes, and needs, an `input_size`."""
    if head not in get_args(HeadName):
        raise ValueError(f"head {head!r}: use one of {get_args(HeadName)}")
    if head != "fixed":
        if input_size is not None:
            raise ValueError(f"input_size {input_size} is for head 'fixed', not for {head!r}")
        return PatchHead(num_axes, dim) if head == "patch" else PooledHead(dim)
    axes = ("frames", "height", "width")[-num_axes:]
    if input_size is None or len(input_size) != num_axes or min(input_size) < 1:
        raise ValueError(f"input_size {input_size}: head 'fixed' needs ({', '.join(axes)})")
    return FixedHead(dim, tuple(input_size), num_halvings)

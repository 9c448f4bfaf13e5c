"""O2-MAGVIT2 written down a second time: names, shapes and functions, as its code has them.

It shares no line with the package: configurations that nobody stored numbers for are compared
with this, and this with stored numbers.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """A model of theirs: what its YAML file says."""

    filters: int = 32
    mults: tuple[int, ...] = (1, 1)
    halve_time: tuple[bool, ...] = (True,)
    num_units: int = 1
    bits: int = 10
    channels: int = 3
    is_video: bool = True
    misnamed: bool = True
    """Whether the encoder calls units after a level's first ones those of level 0."""

    @property
    def widths(self):
        return [self.filters * mult for mult in self.mults]


RELEASE = Shape(128, (1, 1, 2, 2, 4), (False, False, True, True), 4, 18)


def tokenizer_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tokenizer's tensors, without the mask."""
    found = {}

    def conv(name, dim, out, size=3, bias=True):
        child = ".conv" if shape.is_video else ""
        found[f"{name}{child}.weight"] = (out, dim, *(size,) * (2 + shape.is_video))
        if bias:
            found[f"{name}{child}.bias"] = (out,)

    def affine(name, dim):
        found[f"{name}.norm_fn.weight"] = found[f"{name}.norm_fn.bias"] = (dim,)

    def unit(name, dim, out):
        affine(f"{name}.norm_0", dim)
        conv(f"{name}.conv_0", dim, out, bias=False)
        affine(f"{name}.norm_1", out)
        conv(f"{name}.conv_1", out, out, bias=False)
        if dim != out:
            conv(f"{name}.conv_shortcut", dim, out, 1, bias=False)

    widths, last = shape.widths, len(shape.mults) - 1
    numbers = range(shape.num_units)
    conv("encoder.conv_first", shape.channels, shape.filters)
    dim = shape.filters
    for i, width in enumerate(widths):
        for j in numbers:
            level = 0 if j > 0 and shape.misnamed else i
            unit(f"encoder.res_blocks.res_block_{i}.res_block_{level}_{j}", dim, width)
            dim = width
        if i < last:
            conv(f"encoder.conv_downsample_blocks.conv_downsample_{i}", dim, dim)
    for j in numbers:
        unit(f"encoder.res_blocks.res_block_final.res_block_final_{j}", dim, dim)
    affine("encoder.final_norm", dim)
    conv("encoder.conv_last", dim, shape.bits, 1)

    conv("decoder.conv_first", shape.bits, dim)
    for j in numbers:
        unit(f"decoder.res_blocks.res_block_pre.res_block_pre_{j}", dim, dim)
    for s, width in enumerate(reversed(widths)):
        for part in ("gamma", "beta"):
            found[f"decoder.cond_norm_layers.cond_norm_{s}.{part}.weight"] = (dim, shape.bits)
            found[f"decoder.cond_norm_layers.cond_norm_{s}.{part}.bias"] = (dim,)
        for j in numbers:
            unit(f"decoder.res_blocks.res_block_{s}.res_block_{s}_{j}", dim, width)
            dim = width
        if s < last:
            times = 8 if shape.halve_time[last - 1 - s] else 4
            conv(f"decoder.conv_upsample_blocks.conv_upsample_{s}.conv1", dim, dim * times)
    affine("decoder.final_norm", dim)
    conv("decoder.conv_last", dim, shape.channels)
    return found


def discriminator_shapes(filters, mults, map_size, channels=3) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a discriminator's tensors, of images if the map has two sides."""
    kernel, found, dim = (3,) * len(map_size), {}, filters

    def both(name, *shape):
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    both("conv_in", dim, channels, *kernel)
    for k, mult in enumerate(mults):
        out = filters * mult
        both(f"res_blocks.{k}.conv1", dim, dim, *kernel)
        found[f"res_blocks.{k}.blur.filt"] = (dim, 1, *kernel)
        found[f"res_blocks.{k}.conv2.weight"] = (out, dim, *(1,) * len(map_size))
        both(f"res_blocks.{k}.conv3", out, dim, *kernel)
        dim = out
    both("conv_out", dim, dim, *kernel)
    both("linear0", dim, dim * int(np.prod(map_size)))
    both("linear1", 1, dim)
    return found


def made(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A tensor from its name and a seed; filters that blur are what they always are."""
    if name.endswith(".filt"):
        row = torch.tensor([0.25, 0.5, 0.25])
        cube = row[:, None] * row
        cube = cube if len(shape) == 4 else row[:, None, None] * cube
        return cube.expand(shape).clone()
    seed = (zlib.crc32(name.encode()) + seed) & 0xFFFFFFFF
    values = np.random.RandomState(seed).standard_normal(shape)
    if name.endswith("bias"):
        values = 0.1 * values
    elif len(shape) == 1:
        values = 1 + 0.2 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return torch.tensor(values).float()


def made_state(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    return {name: made(name, shape, seed) for name, shape in shapes.items()}


def mask(bits: int, order: str = "msb") -> torch.Tensor:
    powers = 2 ** np.arange(bits)
    return torch.tensor(powers[::-1].copy() if order == "msb" else powers)


def encode(state: dict, shape: Shape, x: torch.Tensor) -> torch.Tensor:
    """Latents of video `b c t h w`, or of images `b c h w`."""
    last = len(shape.mults) - 1
    x = conv(state, "encoder.conv_first", x)
    for i in range(len(shape.mults)):
        for j in range(shape.num_units):
            level = 0 if j > 0 and shape.misnamed else i
            x = unit(state, f"encoder.res_blocks.res_block_{i}.res_block_{level}_{j}", x)
        if i < last:
            stride = (1 + shape.halve_time[i], 2, 2)[-(x.ndim - 2) :]
            x = conv(state, f"encoder.conv_downsample_blocks.conv_downsample_{i}", x, stride)
    for j in range(shape.num_units):
        x = unit(state, f"encoder.res_blocks.res_block_final.res_block_final_{j}", x)
    return conv(
        state, "encoder.conv_last", F.silu(norm(x, *affine_of(state, "encoder.final_norm")))
    )


def decode(state: dict, shape: Shape, codes: torch.Tensor) -> torch.Tensor:
    """Frames of codes of +-1."""
    last, cond = len(shape.mults) - 1, codes
    x = conv(state, "decoder.conv_first", codes)
    for j in range(shape.num_units):
        x = unit(state, f"decoder.res_blocks.res_block_pre.res_block_pre_{j}", x)
    for s in range(last + 1):
        name = f"decoder.cond_norm_layers.cond_norm_{s}"
        gamma, beta = (
            F.linear(
                cond.movedim(1, -1), state[f"{name}.{part}.weight"], state[f"{name}.{part}.bias"]
            ).movedim(-1, 1)
            for part in ("gamma", "beta")
        )
        x = norm(x) * (gamma + 1) + beta
        for j in range(shape.num_units):
            x = unit(state, f"decoder.res_blocks.res_block_{s}.res_block_{s}_{j}", x)
        if s < last:
            frames = 1 + shape.halve_time[last - 1 - s]
            x = conv(state, f"decoder.conv_upsample_blocks.conv_upsample_{s}.conv1", x)
            x = depth_to_space(x, frames)
            cond = F.interpolate(cond, x.shape[2:], mode="nearest")
            if x.ndim == 5:
                x, cond = x[:, :, frames - 1 :], cond[:, :, frames - 1 :]
    return conv(
        state, "decoder.conv_last", F.silu(norm(x, *affine_of(state, "decoder.final_norm")))
    )


def conv(state, name, x, stride=1):
    name = f"{name}.conv" if x.ndim == 5 else name
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    side = weight.shape[-1] // 2
    if x.ndim == 4:
        return F.conv2d(x, weight, bias, stride, side)
    before = weight.shape[2] - 1
    return F.conv3d(F.pad(x, (side, side, side, side, before, 0)), weight, bias, stride)


def norm(x, weight=None, bias=None):
    if x.ndim == 4:
        return F.group_norm(x, 32, weight, bias, 1e-5)
    return torch.stack([norm(frame, weight, bias) for frame in x.unbind(2)], dim=2)


def affine_of(state, name):
    return state[f"{name}.norm_fn.weight"], state[f"{name}.norm_fn.bias"]


def unit(state, name, x):
    out = conv(state, f"{name}.conv_0", F.silu(norm(x, *affine_of(state, f"{name}.norm_0"))))
    out = conv(state, f"{name}.conv_1", F.silu(norm(out, *affine_of(state, f"{name}.norm_1"))))
    wider = any(key.startswith(f"{name}.conv_shortcut.") for key in state)
    return out + (conv(state, f"{name}.conv_shortcut", x) if wider else x)


def depth_to_space(x, frames):
    """Channel ((dt * 2 + dh) * 2 + dw) * C + c."""
    if x.ndim == 4:
        return depth_to_space(x[:, :, None], 1)[:, :, 0]
    b, dims, t, h, w = x.shape
    x = x.view(b, frames, 2, 2, dims // (4 * frames), t, h, w)
    return x.permute(0, 4, 5, 1, 6, 2, 7, 3).reshape(b, -1, t * frames, h * 2, w * 2)

"""VidTok written down a second time: names, shapes and functions, from a description of it.

It shares no line with the package. Configurations that nobody stored numbers for are compared with
this, and this with stored numbers (`tests/convert/test_vidtok.py`). It is also the plain structure
beside which `benchmarks/vidtok.py` measures.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from tests.o2_magvit2 import made


@dataclass(frozen=True)
class Shape:
    """A model of theirs: what its YAML file says."""

    ch: int = 16
    mults: tuple[int, ...] = (1, 2, 2, 2)
    num_units: int = 1
    z: int = 5
    kl: bool = False
    channels: int = 3
    spatial_ds: tuple[int, ...] | None = None
    tempo_ds: tuple[int, ...] | None = None
    spatial_us: tuple[int, ...] | None = None
    tempo_us: tuple[int, ...] = (1, 2)
    version: str = "1.1"
    linear: bool = True
    group_norm: bool = False

    @property
    def levels(self):
        return range(len(self.mults))

    @property
    def down(self):
        return self.levels[:-1] if self.spatial_ds is None else self.spatial_ds

    @property
    def up(self):
        return self.levels[1:] if self.spatial_us is None else self.spatial_us

    @property
    def down_time(self):
        return self.levels[-3:-1] if self.tempo_ds is None else self.tempo_ds

    @property
    def factor(self):
        """Frames to a latent."""
        return 2 ** sum(level in self.down for level in self.down_time)


def shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of encoder and decoder."""
    found = {}

    def conv(name, dim, out, *kernel):
        found[f"{name}.weight"], found[f"{name}.bias"] = (out, dim, *kernel), (out,)

    def norm(name, dim):
        name = name if shape.group_norm else f"{name}.norm"
        found[f"{name}.weight"] = found[f"{name}.bias"] = (dim,)

    def block(name, dim, out, kernel, causal):
        child = ".conv" if causal else ""
        norm(f"{name}.norm1", dim)
        conv(f"{name}.conv1{child}", dim, out, *kernel)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2{child}", out, out, *kernel)
        if dim != out:
            conv(f"{name}.nin_shortcut{child}", dim, out, *[1] * len(kernel))

    def middle(name, dim):
        block(f"{name}.block_1", dim, dim, (3, 3, 3), True)
        norm(f"{name}.attn_1.norm", dim)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.attn_1.{part}.conv", dim, dim, 1, 1, 1)
        block(f"{name}.block_2", dim, dim, (3, 3, 3), True)

    def level(side, number, dim, out, num_units):
        for unit in range(num_units):
            block(f"{side}.{number}.block.{unit}", dim, out, (3, 3), False)
            block(f"{side}_temporal.{number}.block.{unit}", out, out, (3,), True)
            dim = out

    def mixed(name, dim):
        conv(f"{name}.conv.conv", dim, dim, 3, 3, 3)
        found[f"{name}.mix_factor"] = (1,)

    widths, dim = [shape.ch * mult for mult in shape.mults], shape.ch
    conv("encoder.conv_in.conv", shape.channels, dim, 3, 3, 3)
    for i, width in enumerate(widths):
        level("encoder.down", i, dim, width, shape.num_units)
        dim = width
        if i in shape.down:
            conv(f"encoder.down.{i}.downsample.conv", dim, dim, 3, 3)
            if i in shape.down_time:
                mixed(f"encoder.down_temporal.{i}.downsample", dim)
    middle("encoder.mid", dim)
    norm("encoder.norm_out", dim)
    conv("encoder.conv_out.conv", dim, shape.z * (1 + shape.kl), 3, 3, 3)

    conv("decoder.conv_in.conv", shape.z, dim, 3, 3, 3)
    middle("decoder.mid", dim)
    for i, width in reversed(list(enumerate(widths))):
        level("decoder.up", i, dim, width, shape.num_units + 1)
        dim = width
        if i in shape.up:
            conv(f"decoder.up.{i}.upsample.conv", dim, dim, 3, 3)
        if i in shape.tempo_us:
            mixed(f"decoder.up_temporal.{i}.upsample", dim)
    norm("decoder.norm_out", dim)
    conv("decoder.conv_out.conv", dim, shape.channels, 3, 3, 3)
    return found


def made_state(shape: Shape, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights, the same for the same name, shape and seed."""
    return {name: made(name, size, seed) for name, size in shapes(shape).items()}


def encode(state: dict, shape: Shape, video: torch.Tensor) -> torch.Tensor:
    """Output of the encoder for `b c t h w` with t = 1 + k * factor."""
    net = Net(state, shape, "encoder.")
    copies = video[:, :, :1].expand(-1, -1, shape.factor - 1, -1, -1)
    x = net.conv3d("conv_in", torch.cat((copies, video), dim=2))
    for i in shape.levels:
        for unit in range(shape.num_units):
            x = net.spatial(f"down.{i}.block.{unit}", x)
            x = net.temporal(f"down_temporal.{i}.block.{unit}", x)
        if i in shape.down:
            x = net.each_frame(F.pad(x, (0, 1, 0, 1)), f"down.{i}.downsample.conv", stride=2)
            if i in shape.down_time:
                name = f"down_temporal.{i}.downsample"
                # Zeros count in the mean.
                pooled = F.avg_pool3d(net.before(x, 1), (3, 1, 1), (2, 1, 1))
                x = net.mixed(name, pooled, net.conv3d(f"{name}.conv", x, time_stride=2))
    return net.conv3d("conv_out", F.silu(net.norm("norm_out", net.middle(x))))


def decode(state: dict, shape: Shape, latents: torch.Tensor) -> torch.Tensor:
    """Frames of quantized latents."""
    net = Net(state, shape, "decoder.")
    x, num_first = net.middle(net.conv3d("conv_in", latents)), 1
    for i in reversed(shape.levels):
        for unit in range(shape.num_units + 1):
            x = net.spatial(f"up.{i}.block.{unit}", x)
            x = net.temporal(f"up_temporal.{i}.block.{unit}", x)
        if i in shape.up:
            x = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest")
            x = net.each_frame(x, f"up.{i}.upsample.conv", padding=1)
            if i in shape.tempo_us:
                x = doubled(x, num_first if shape.linear else None)
                name, num_first = f"up_temporal.{i}.upsample", num_first * 2
                x = net.mixed(name, x, net.conv3d(f"{name}.conv", x))
    x = net.conv3d("conv_out", F.silu(net.norm("norm_out", x)))
    return x[:, :, shape.factor - 1 :]


def doubled(x: torch.Tensor, num_first: int | None) -> torch.Tensor:
    """Twice as many frames: linear, with `num_first` frames on their own, or (None) copies."""
    if num_first is None:
        return F.interpolate(x, scale_factor=(2.0, 1.0, 1.0), mode="nearest")
    parts = x.split([num_first, x.shape[2] - num_first], dim=2)
    parts = [part for part in parts if part.shape[2]]
    linear = dict(scale_factor=(2.0, 1.0, 1.0), mode="trilinear")
    return torch.cat([F.interpolate(part, **linear) for part in parts], dim=2)


def quantize(latents: torch.Tensor, levels: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Values in [-1, 1] and indices of FSQ, one channel at a time."""
    values, indices, basis = [], 0, 1
    for z, num in zip(latents.unbind(1), levels, strict=True):
        half, offset = (num - 1) * 1.001 / 2, 0.5 if num % 2 == 0 else 0.0
        shift = torch.atanh(torch.tensor(offset / half, dtype=z.dtype))
        step = torch.round(torch.tanh(z + shift) * half - offset)
        values.append(step / (num // 2))
        indices, basis = indices + (step.long() + num // 2) * basis, basis * num
    return torch.stack(values, dim=1), indices


class Net:
    """The pieces of one half of the network."""

    def __init__(self, state: dict, shape: Shape, prefix: str):
        self.state, self.shape, self.prefix = state, shape, prefix

    def weights(self, name):
        return (self.state[f"{self.prefix}{name}.{part}"] for part in ("weight", "bias"))

    def before(self, x, num):
        """`num` frames in front of the first."""
        first = x[:, :, :1] if self.shape.version == "1.1" else torch.zeros_like(x[:, :, :1])
        return torch.cat((*[first] * num, x), dim=2)

    def conv3d(self, name, x, time_stride=1):
        weight, bias = self.weights(f"{name}.conv")
        time, side = weight.shape[2], weight.shape[-1] // 2
        x = F.pad(self.before(x, time - time_stride), (side, side, side, side))
        return F.conv3d(x, weight, bias, (time_stride, 1, 1))

    def each_frame(self, x, name, **options):
        weight, bias = self.weights(name)
        frames = F.conv2d(x.transpose(1, 2).flatten(0, 1), weight, bias, **options)
        return frames.unflatten(0, (len(x), -1)).transpose(1, 2)

    def norm(self, name, x):
        if self.shape.group_norm:
            weight, bias = self.weights(name)
            frames = [F.group_norm(frame, 32, weight, bias, 1e-6) for frame in x.unbind(2)]
            return torch.stack(frames, dim=2)
        weight, bias = self.weights(f"{name}.norm")
        return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, 1e-6).movedim(-1, 1)

    def block(self, name, x, conv):
        out = conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)))
        out = conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", out)))
        wider = any(key.startswith(f"{self.prefix}{name}.nin_shortcut") for key in self.state)
        return out + (conv(f"{name}.nin_shortcut", x) if wider else x)

    def spatial(self, name, x):
        def conv(name, x):
            _, _, *kernel = self.state[f"{self.prefix}{name}.weight"].shape
            return self.each_frame(x, name, padding=kernel[0] // 2)

        return self.block(name, x, conv)

    def temporal(self, name, x):
        def conv(name, x):
            weight, bias = self.weights(f"{name}.conv")
            b, _, t, h, w = x.shape
            lines = self.before(x, 2).permute(0, 3, 4, 1, 2).flatten(0, 2)
            out = F.conv1d(lines, weight, bias)
            return out.view(b, h, w, -1, t).permute(0, 3, 4, 1, 2)

        return self.block(name, x, conv)

    def middle(self, x):
        x = self.block("mid.block_1", x, self.conv3d)
        b, c, t, h, w = x.shape
        normed = self.norm("mid.attn_1.norm", x)
        q, k, v = (
            self.conv3d(f"mid.attn_1.{part}", normed).movedim(1, -1).reshape(b * t, h * w, c)
            for part in ("q", "k", "v")
        )
        weights = (q @ k.transpose(1, 2) * c**-0.5).softmax(-1)
        out = (weights @ v).view(b, t, h, w, c).permute(0, 4, 1, 2, 3)
        x = x + self.conv3d("mid.attn_1.proj_out", out)
        return self.block("mid.block_2", x, self.conv3d)

    def mixed(self, name, plain, conv):
        share = self.state[f"{self.prefix}{name}.mix_factor"].sigmoid()
        return share * plain + (1 - share) * conv

"""Compares half-precision convolutions, linear maps and norms with float32; prints what differs.

Run in a process of its own, since `ONEDNN_MAX_CPU_ISA` is read once.
The reference is PyTorch's own float32 convolution of a video padded by hand.
"""

import itertools
import json

import torch
from torch import nn
from torch.nn import functional as F

from magvit2_pytorch.discriminators.discriminator import DISCRIMINATORS, build_discriminator
from magvit2_pytorch.layers import arithmetic
from magvit2_pytorch.layers.conv import CausalConv3d
from magvit2_pytorch.tokenizer.layer_spec import LAYERS
from magvit2_pytorch.tokenizer.presets import PRESETS
from magvit2_pytorch.training.arithmetic_check import ArithmeticCheck
from tests.conftest import build, cond_of, narrow

BF16 = torch.bfloat16
TOLERANCE = 2**-6
"""Of the norm of the difference over the norm. Inputs are exact in bfloat16, products and sums
are float32; what is left is one or two roundings of the results, 2**-9 each."""

MAX_MULTIPLICATIONS = 6e8
"""Of a case, so that all of them together take a minute."""

MAPS = ((1, 1), (2, 1), (2, 2), (4, 2), (5, 3), (4, 4), (8, 8), (16, 16), (32, 32))
KERNELS = (
    ((1, 1, 1), (1, 1, 1)),
    ((1, 3, 3), (1, 1, 1)),
    ((1, 3, 3), (1, 2, 2)),
    ((3, 1, 1), (1, 1, 1)),
    ((3, 1, 1), (2, 1, 1)),
    ((3, 3, 3), (1, 1, 1)),
    ((3, 3, 3), (1, 2, 2)),
    ((3, 3, 3), (2, 2, 2)),
)
PAIRS = ((3, 64), (8, 8), (12, 12), (16, 16), (48, 48), (64, 64), (128, 48), (192, 128), (64, 256))


def poison() -> None:
    """Fills memory that the allocator will hand out next with NaN."""
    junk = [torch.full((n,), float("nan")) for n in (16, 256, 4096, 65536, 1 << 18)]
    del junk


def exact(*size: int) -> torch.Tensor:
    """Random numbers that bfloat16 holds exactly."""
    return torch.randn(*size).to(BF16).float()


def gradients(run, x, weights, grad=None):
    """Value and gradients of `run(x)`, and the gradient of the output that they are for."""
    x = x.detach().clone().requires_grad_()
    for weight in weights:
        weight.grad = None
    out = run(x)
    out = out if isinstance(out, torch.Tensor) else out[0]
    # Their mean is not 0: sums that stop growing show themselves.
    grad = exact(*out.shape) + 0.25 if grad is None else grad
    out.backward(grad.to(out.dtype))
    found = {"value": out.detach(), "input": x.grad}
    return found | {f"weight {i}": w.grad.clone() for i, w in enumerate(weights)}, grad


def differences(run, reference, x, weights) -> dict[str, float]:
    """Relative errors above the tolerance of one bfloat16 run against float32."""
    right, grad = gradients(reference, x, weights)
    poison()
    with torch.autocast("cpu", BF16):
        found, _ = gradients(run, x.to(BF16), weights, grad)
    wrong = {}
    for name, want in right.items():
        error = (found[name].float() - want).norm() / want.norm().clamp(min=1e-12)
        if not error <= TOLERANCE:
            wrong[name] = float(error)
    return wrong


def padded(conv, before, after):
    """The reference: zeros in time by hand, then PyTorch's float32 convolution."""

    def run(x):
        x = F.pad(x, (0, 0, 0, 0, before, after))
        return F.conv3d(x, conv.weight, conv.bias, conv.stride, (0, *conv.padding[1:]))

    return run


def convolutions(fmt):
    """Cases and functions that give each its layer, its reference and an input."""
    grid = itertools.product(KERNELS, PAIRS, range(1, 6), MAPS)
    for (kernel, stride), pair, frames, size in grid:
        taps = kernel[0] * kernel[1] * kernel[2]
        if pair[0] * pair[1] * taps * frames * size[0] * size[1] > MAX_MULTIPLICATIONS:
            continue

        def causal(kernel=kernel, stride=stride, pair=pair, frames=frames, size=size):
            layer = exactly(CausalConv3d(*pair, kernel, stride), fmt)
            x = exact(2, pair[0], frames, *size).contiguous(memory_format=fmt)
            return layer, padded(layer.conv, kernel[0] - 1, 0), x

        def centred(pair=pair, frames=frames, size=size):
            layer = exactly(arithmetic.Conv3d(*pair, 3, padding=1), fmt)
            x = exact(2, pair[0], frames, *size).contiguous(memory_format=fmt)
            return layer, padded(layer, 1, 1), x

        case = (kernel, stride, pair, frames, size, fmt)
        yield ("causal", *case), causal
        if kernel == (3, 3, 3) and stride == (1, 1, 1):
            yield ("centred", *case), centred


def exactly(layer, fmt):
    """The layer with weights that bfloat16 holds exactly."""
    for parameter in layer.parameters():
        parameter.data = exact(*parameter.shape)
    return layer.to(memory_format=fmt)


def norms():
    """As `convolutions`, for the layer norm; the last one is as large as those of `small`."""
    for rows, dim in ((1, 8), (5, 48), (20_480, 128), (278_528, 16)):

        def norm(rows=rows, dim=dim):
            layer = arithmetic.LayerNorm(dim)
            reference = nn.LayerNorm(dim)
            reference.weight, reference.bias = layer.weight, layer.bias
            return layer, reference, exact(rows, dim) + 1

        yield ("norm", rows, dim), norm


def towers():
    """Every registered layer, preset and discriminator: a function that makes it.

    It gives the model, a function of a video, and the shape of the video.
    """
    for layer in LAYERS:

        def tower(layer=layer):
            m = build("compress_space", layer, "compress_time", layer, "compress_time")
            return m, lambda x: m.decode(m.encode(x, c(m)), c(m)), (2, 3, 5, 16, 16)

        yield layer, tower
    for name in PRESETS:

        def preset(name=name):
            m = narrow(name)
            frames = 1 + 2 * m.time_factor if m.time_factor > 1 else 1
            dim = m.quantizer.quantized_dim  # of continuous latents the mean
            return m, lambda x: m.decode(m.encode(x)[:, :dim]), (1, 3, frames, 32, 32)

        yield name, preset
    for name, frames, head in itertools.product(DISCRIMINATORS, (1, 2, 5), ("pooled", "patch")):

        def discriminator(name=name, frames=frames, head=head):
            m = build_discriminator(name, 3, dim=8, head=head)

            def logits(x):
                return torch.cat([v.flatten() for v in m(m.views(x, m.pick(x))).logits])

            return m, logits, (2, 3, frames, 32, 32)

        yield f"{name} {frames}", discriminator


def c(model):
    return cond_of(model, 2)


def only_convolutional(model):
    """The quantizer is no half-precision arithmetic."""
    return nn.ModuleList((model.encoder, model.decoder)) if hasattr(model, "encoder") else model


def main(
    threads: int, offset: int, share: int, tower_share: int, pretend_kernels: bool = False
) -> None:
    """Tries every `share`-th case and every `tower_share`-th tower, other ones by `offset`.

    The few norms are always tried.
    `pretend_kernels` takes the way of machines that have the kernels, on one without them.
    """
    if pretend_kernels:
        arithmetic.has_kernels = lambda dtype: True
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    wrong, number, count = [], 0, 0
    cases = itertools.chain(
        convolutions(torch.contiguous_format), convolutions(torch.channels_last_3d), norms()
    )
    for case, make in cases:
        number += 1
        if (number + offset) % share and case[0] != "norm":
            continue
        count += 1
        layer, reference, x = make()
        if found := differences(layer, reference, x, list(layer.parameters())):
            wrong.append([str(case), found])
    compared = 0
    for name, make in itertools.islice(towers(), offset % tower_share, None, tower_share):
        model, function, shape = make()
        check = ArithmeticCheck([only_convolutional(model.train())], "bf16")
        layers = len(check._hooks)
        with torch.autocast("cpu", BF16):
            out = function(torch.rand(shape) * 2 - 1)
        poison()
        out.float().square().mean().backward()
        compared += check.num_compared
        if check.wrong or check.num_compared != layers:
            wrong.append([name, f"{check.num_compared} of {layers} layers", *check.wrong])
    kernels = arithmetic.has_kernels(BF16)
    print(json.dumps({"count": count, "compared": compared, "wrong": wrong, "kernels": kernels}))

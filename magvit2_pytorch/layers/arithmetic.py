"""The library's convolution, linear map and layer norm, with right gradients.

PyTorch's kernels for half precision on CPUs are wrong for some shapes: weight gradients of small
kernels (NaN, or a quarter off), strided convolutions of narrow maps, gradients of a layer norm's
gain and bias. Which shapes depends on the processor, so what follows avoids all such kernels by
construction instead of by trial: weight gradients of small kernels are matrix products, sums are
taken in float32, time is padded with frames that are really there, and what is left is computed
in float32. float32 on a CPU takes a faster way where PyTorch's own is slow: convolutions over time
alone or over space alone as 2-D ones, and 1x1x1 ones with one thread as products. Other devices
take PyTorch's own way.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.types import Precision

MAX_PRODUCT_TAPS = 9
"""Kernels of up to this many taps get their weight gradient by matrix products. Larger ones keep
PyTorch's: none was seen to be wrong, and 27 products take several times as long as they do."""

MIN_STRIDED_SIZE = 8
"""Strided convolutions of maps narrower than this are computed in float32. oneDNN's are wrong
where the output is one column wide (pytorch PR 188426); maps of this size cost nothing."""


def half_precision(x: Tensor) -> torch.dtype | None:
    """The half-precision type of a CPU's convolution of `x`, or None."""
    if x.device.type != "cpu" or x.dtype == torch.float64:
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


@cache
def has_kernels(dtype: torch.dtype) -> bool:
    """Returns whether this CPU has oneDNN's convolutions and matrix products in `dtype`.

    Without them PyTorch's own loops take up to a hundred times as long as float32. A trial tells
    what the processor's flags do not: oneDNN may be held to fewer (`ONEDNN_MAX_CPU_ISA`).
    """
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    if not (
        torch.backends.mkldnn.is_available()
        and getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")()
    ):
        return False
    x = torch.ones(1, 32, 3, 8, 8, dtype=dtype)
    try:
        F.conv3d(x, torch.ones(32, 32, 1, 3, 3, dtype=dtype))
        F.linear(x.movedim(1, -1), torch.ones(32, 32, dtype=dtype))
    except RuntimeError:
        return False
    return True


# As `torch.compiler.assume_constant_result` marks it, which imports the whole compiler: 2 seconds.
has_kernels._dynamo_marked_constant = True


def fast_precision() -> Precision:
    """bf16 where the GPU or else the processor computes in it.

    Otherwise it is fp32. Processors with AVX-512 but no instructions for bf16 convert each number,
    at a cost.
    """
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif torch.backends.mps.is_available():
        fast = False
    else:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        fast = capabilities.get("avx512_bf16", True) and has_kernels(torch.bfloat16)
    return "bf16" if fast else "fp32"


def linear(
    x: Float[Tensor, "... c"], weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None
) -> Float[Tensor, "... d"]:
    """`F.linear`, in float32 where the CPU has no products in half precision."""
    dtype = half_precision(x)
    if dtype is None or has_kernels(dtype):
        return F.linear(x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(dtype)


def convolve(
    x: Float[Tensor, "b c ..."],
    weight: Float[Tensor, "d i ..."],
    bias: Float[Tensor, " d"] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int = 1,
) -> Float[Tensor, "b d ..."]:
    """Convolution over two or three axes; `padding` in time must be 0.

    Output channels in `groups` equal parts depend on as many parts of the input channels.
    """
    conv = F.conv3d if x.ndim == 5 else F.conv2d
    dtype = half_precision(x)
    is_product = weight[0, 0].numel() == 1 == groups and set(stride) == {1}
    if dtype is None:
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
            return conv(x, weight, bias, stride, padding, groups=groups)
        if x.ndim == 5 and not is_product:
            if weight[0, 0, 0].numel() == 1 == max(stride[1:]):
                return _convolve_time(x, weight, bias, stride[0], groups)
            if weight.shape[2] == 1 == stride[0]:
                return _convolve_frames(x, weight, bias, stride[1:], padding[1:], groups)
        if not is_product or torch.get_num_threads() > 1:
            return conv(x, weight, bias, stride, padding, groups=groups)
    if is_product:
        # With one thread PyTorch's 1x1x1 convolution takes two to four times as long as this.
        out = linear(x.movedim(1, -1), weight.flatten(1), bias)
        return out.movedim(-1, 1)
    narrow = max(stride) > 1 and min(x.shape[-2:]) < MIN_STRIDED_SIZE
    if narrow or not has_kernels(dtype):
        with torch.autocast("cpu", enabled=False):
            bias = None if bias is None else bias.float()
            return convolve(x.float(), weight.float(), bias, stride, padding, groups).to(dtype)
    return _Convolution.apply(x.to(dtype), weight, bias, tuple(stride), tuple(padding), groups)


def _convolve_time(
    x: Float[Tensor, "b c t h w"],
    weight: Float[Tensor, "d i k 1 1"],
    bias: Float[Tensor, " d"] | None,
    stride: int,
    groups: int,
) -> Float[Tensor, "b d u h w"]:
    """Convolution over time alone, as one over (time, position).

    PyTorch computes k x 1 x 1 kernels in loops of its own with one thread, and their weight
    gradient slowly with any number: together two to three times the time of this
    (benchmarks/LOG.md, section 23).
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    options = (weight.flatten(3), bias, (stride, 1), (0, 0), groups)
    return _Convolution.apply(x.flatten(3), *options).unflatten(3, x.shape[3:])


def _convolve_frames(
    x: Float[Tensor, "b c t h w"],
    weight: Float[Tensor, "d i 1 k l"],
    bias: Float[Tensor, " d"] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
) -> Float[Tensor, "b d t y x"]:
    """Convolution of each frame, as of a batch of images.

    With one thread and a batch of one PyTorch computes 1 x k x k kernels in loops of its own, and
    the weight gradient of few channels slowly with any number.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    frames = x.movedim(1, 2).flatten(0, 1)
    out = F.conv2d(frames, weight.squeeze(2), bias, stride, padding, groups=groups)
    return out.unflatten(0, (x.shape[0], x.shape[2])).movedim(2, 1)


class _Convolution(torch.autograd.Function):
    """CPU convolution with matrix products as small kernels' weight gradient.

    In half precision, gradients of weight and bias are in float32. Whatever the backward pass calls
    is differentiable, so that gradient penalties work.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, groups):
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.groups = stride, padding, groups
        conv = F.conv3d if x.ndim == 5 else F.conv2d
        bias = None if bias is None else bias.to(x.dtype)
        return conv(x, weight.to(x.dtype), bias, stride, padding, groups=groups)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        by_products = weight[0, 0].numel() <= MAX_PRODUCT_TAPS
        axes = len(ctx.stride)
        grad_x = grad_weight = grad_bias = None
        if needs_x or (needs_weight and not by_products):
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
                grad, x, weight.to(x.dtype), None, ctx.stride, ctx.padding, (1,) * axes, False,
                (0,) * axes, ctx.groups, (needs_x, needs_weight and not by_products, False),
            )  # fmt: skip
        if needs_weight and by_products:
            options = weight.shape[2:], ctx.stride, ctx.padding
            parts = zip(x.chunk(ctx.groups, 1), grad.chunk(ctx.groups, 1), strict=True)
            grad_weight = torch.cat([weight_gradient(*part, *options) for part in parts])
        if needs_weight:
            grad_weight = grad_weight.to(weight.dtype)
        if needs_bias:
            dtype = torch.promote_types(grad.dtype, torch.float32)
            grad_bias = grad.sum((0, *range(2, grad.ndim)), dtype=dtype).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, None, None, None


def weight_gradient(
    x: Float[Tensor, "b c ..."],
    grad: Float[Tensor, "b d ..."],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Float[Tensor, "d c ..."]:
    """Weight gradient: for each tap, output gradients times its inputs.

    A row of taps along the last axis is one product.
    """
    if any(padding):
        x = F.pad(x, [p for size in reversed(padding) for p in (size, size)])
    x, grad = x.movedim(1, -1), grad.movedim(1, -1)
    sizes = grad.shape[1:-1]
    grad = grad.flatten(0, -2).T

    def window(offset: Sequence[int]) -> Tensor:
        """The positions that one tap meets."""
        spans = zip(offset, sizes, stride, strict=True)
        return x[(slice(None), *(slice(o, o + (n - 1) * s + 1, s) for o, n, s in spans))]

    rows = []
    for offset in product(*map(range, kernel_size[:-1])):
        windows = [window((*offset, last)) for last in range(kernel_size[-1])]
        seen = windows[0] if len(windows) == 1 else torch.cat(windows, dim=-1)
        rows.append((grad @ seen.flatten(0, -2)).unflatten(1, (kernel_size[-1], -1)))
    taps = torch.stack(rows, dim=1).movedim(-1, 1)  # d c rows taps
    return taps.unflatten(2, tuple(kernel_size[:-1]))


def layer_norm(
    x: Float[Tensor, "... c"],
    weight: Float[Tensor, " c"] | None = None,
    bias: Float[Tensor, " c"] | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "... c"]:
    """Layer norm over the last axis."""
    half = x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)
    if half and weight is not None and not torch.compiler.is_compiling():
        return _HalfLayerNorm.apply(x, weight, bias, eps)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


class _ConvNd:
    """`forward` of a convolution with real zeros around in time."""

    def forward(self, x: Float[Tensor, "b c ..."]) -> Float[Tensor, "b d ..."]:
        weight, padding = self.weight, list(self.padding)
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = [0] * len(padding)
        if len(padding) == 3 and padding[0]:
            time, padding[0] = padding[0], 0
            if x.shape[2] == 1 and weight.shape[2] == 2 * time + 1:
                # One frame between zeros meets one tap: a fraction of the work.
                weight = weight[:, :, time : time + 1]
            else:
                x = F.pad(x, (0, 0, 0, 0, time, time))
        return convolve(x, weight, self.bias, self.stride, padding, self.groups)


class Conv2d(_ConvNd, nn.Conv2d):
    """`nn.Conv2d` with right gradients in half precision; no dilation."""


class Conv3d(_ConvNd, nn.Conv3d):
    """`nn.Conv3d` with right gradients in half precision; no dilation."""


CONVS = {2: Conv2d, 3: Conv3d}
"""Convolutions by their number of axes."""


class Linear(nn.Linear):
    """`nn.Linear`, in float32 where the CPU has no products in half precision."""

    def forward(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... d"]:
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` with right gradients in half precision on a CPU."""

    def forward(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        return layer_norm(x, self.weight, self.bias, self.eps)


class _HalfLayerNorm(torch.autograd.Function):
    """Layer norm with own sums for gradients of gain and bias.

    PyTorch's backward pass adds them up in half precision, where a sum stops growing once it is
    some hundred times its terms: of 20,480 equal terms 0.41 is left. Compiled code is right.
    The norm of `x.float()` would be right too; on large inputs it took 1.4 to 4 times as long.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        out, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        grad_x = torch.ops.aten.native_layer_norm_backward(
            grad, x, x.shape[-1:], mean, rstd, weight, bias, (True, False, False)
        )[0]
        normalized = torch.native_layer_norm(x, x.shape[-1:], None, None, ctx.eps)[0]
        grad = grad.flatten(0, -2)
        # A sum over rows is accumulated in float32 and rounded once.
        grad_weight = (normalized.flatten(0, -2) * grad).sum(0)
        grad_bias = grad.sum(0)
        return grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None

"""The one home of convolutions, linear maps and norms: right in half precision, and alone."""

import ast
import itertools
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import magvit2_pytorch
from magvit2_pytorch.layers import arithmetic
from tests.layers import arithmetic_worker
from tests.processes import Started

PACKAGE = Path(magvit2_pytorch.__file__).parent
OWNERS = {"layers"}
EXCEPTED = {
    "losses/perceptual_networks.py": "frozen networks of other people, in float32 or as they came",
    "metrics/quality.py": "a fixed filter",
}
REFUSED = {
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "ConvTranspose3d", "Linear", "LayerNorm",
    "GroupNorm", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d", "linear",
    "layer_norm", "group_norm",
}  # fmt: skip

CPU_FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
LIMITS = ["AVX2"]
LIMITS += ["AVX512_CORE"] if "avx512bw" in CPU_FLAGS else []
LIMITS += ["AVX512_CORE_BF16"] if "avx512_bf16" in CPU_FLAGS else []
LIMITS += ["ALL"] if len(LIMITS) > 1 else []  # else the same once more


def test_only_layers_compute():
    refused = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.split("/")[0] in OWNERS or name in EXCEPTED:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            function = call.func
            owner = getattr(getattr(function, "value", None), "id", "")
            if owner in ("nn", "F", "torch") and function.attr in REFUSED:
                refused.append(f"{name}:{call.lineno}")
    assert refused == [], "use layers.arithmetic"


def run_worker(threads, offset, share, tower_share, limit="ALL", **options) -> dict:
    run = partial(arithmetic_worker.main, **options)
    with Started(run, threads, offset, share, tower_share, ONEDNN_MAX_CPU_ISA=limit) as done:
        assert done.wait(3600) == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(("threads", "share", "tower_share"), [(1, 96, 12), (2, 384, 24)])
def test_half_precision_is_near_float32(limit, threads, share, tower_share):
    """Every 96th case and 12th tower, fewer with two threads, others in each; see the worker."""
    found = run_worker(threads, 2 * LIMITS.index(limit) + threads, share, tower_share, limit)
    assert found["wrong"] == []
    assert found["count"] > 7000 // share
    assert found["compared"] > 50


def test_the_way_of_machines_with_half_precision_kernels():
    """Run on any machine, with PyTorch's own loops where it has none."""
    found = run_worker(1, 0, 800, 16, pretend_kernels=True)
    assert found["wrong"] == []
    assert found["kernels"]


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("threads", [1, 2])
def test_half_precision_is_near_float32_everywhere(limit, threads):
    assert run_worker(threads, 0, 1, 1, limit)["wrong"] == []


@pytest.mark.slow
def test_the_way_of_machines_with_half_precision_kernels_everywhere():
    assert run_worker(1, 0, 100, 1, pretend_kernels=True)["wrong"] == []


KERNELS = list(itertools.product([(1, 1, 1), (1, 3, 3), (3, 1, 1), (2, 3, 1)], [1, 2], [1]))
OTHERS = [((3, 3, 3), 1, 1), ((3, 3), 1, 1), ((3, 1), 2, 1), ((3, 3), 1, 2), ((2, 3, 1), 2, 4)]


@pytest.mark.parametrize(("kernel", "stride", "groups"), KERNELS + OTHERS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_by_matrix_products_are_the_convolution_s(kernel, stride, groups, bias):
    axes = len(kernel)
    stride, padding = (stride,) * axes, tuple(k // 2 for k in kernel)
    double = dict(dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3 * groups, *(5, 6, 7)[:axes], **double)
    weight, bias = torch.randn(4, 3, *kernel, **double), torch.randn(4, **double) if bias else None
    inputs = [t for t in (x, weight, bias) if t is not None]
    ours = arithmetic._Convolution.apply(x, weight, bias, stride, padding, groups)
    conv = F.conv3d if axes == 3 else F.conv2d
    right = conv(x, weight, bias, stride, padding, groups=groups)
    torch.testing.assert_close(ours, right)
    grad = torch.randn_like(right)
    firsts = [torch.autograd.grad(out, inputs, grad, create_graph=True) for out in (ours, right)]
    torch.testing.assert_close(*firsts)
    # Twice, as gradient penalties do.
    seconds = [
        torch.autograd.grad(sum(g.square().sum() for g in first), inputs[:2]) for first in firsts
    ]
    torch.testing.assert_close(*seconds)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "groups"),
    [
        *(((k, 1, 1), (s, 1, 1), 1) for k, s in ((1, 1), (2, 1), (3, 1), (3, 2))),
        *(((1, 3, 3), (1, s, s), 1) for s in (1, 2)),
        ((1, 1, 3), (1, 1, 1), 1),
        *((kernel, (1, 1, 1), 2) for kernel in ((1, 1, 1), (3, 1, 1), (1, 3, 3))),
    ],
)
@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last_3d])
def test_float32_over_time_or_space_is_pytorch_s(kernel, stride, groups, fmt, threads, monkeypatch):
    """Values, gradients, gradients of gradients and memory layout; and it is another way."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x = torch.randn(2, 6, 5, 4, 7).contiguous(memory_format=fmt)[..., :6].requires_grad_()
    weight, bias = torch.randn(8, 6 // groups, *kernel).requires_grad_(), torch.randn(8)
    inputs, padding = (x, weight, bias.requires_grad_()), (0, kernel[1] // 2, kernel[2] // 2)
    outs = [
        convolution(*inputs, stride, padding, groups=groups)
        for convolution in (arithmetic.convolve, F.conv3d)
    ]
    ways = {out.grad_fn.name() for out in outs}
    assert len(ways) == (1 if max(kernel) == 1 and threads > 1 and groups == 1 else 2)
    close = dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*outs, **close)
    assert outs[0].is_contiguous(memory_format=torch.channels_last_3d) or len(ways) == 1
    firsts = [torch.autograd.grad(o.square().sum(), inputs, create_graph=True) for o in outs]
    torch.testing.assert_close(*firsts, **close)
    seconds = [torch.autograd.grad(sum(g.square().sum() for g in f), inputs) for f in firsts]
    torch.testing.assert_close(*seconds, rtol=1e-3, atol=1e-2)


def test_layer_norm_differentiates_twice():
    x = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    inputs = (x, weight, bias)
    norms = (
        lambda *a: arithmetic._HalfLayerNorm.apply(*a, 1e-5),
        lambda x, *affine: F.layer_norm(x, (8,), *affine),
    )
    firsts = [
        torch.autograd.grad(norm(*inputs).pow(3).sum(), inputs, create_graph=True) for norm in norms
    ]
    torch.testing.assert_close(*firsts)
    seconds = [torch.autograd.grad(sum(g.square().sum() for g in f), inputs) for f in firsts]
    torch.testing.assert_close(*seconds)


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_padding_in_time_is_pytorch_s(frames, mode):
    ours = arithmetic.Conv3d(3, 4, 3, padding=1, padding_mode=mode)
    right = torch.nn.Conv3d(3, 4, 3, padding=1, padding_mode=mode)
    right.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, frames, 5, 6)
    torch.testing.assert_close(ours(x), right(x))

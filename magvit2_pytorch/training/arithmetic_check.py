"""Comparison of half-precision layers with float32 in the first training step."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from magvit2_pytorch.layers.arithmetic import half_precision
from magvit2_pytorch.layers.conv import CausalConv3d
from magvit2_pytorch.training.processes import any_process
from magvit2_pytorch.types import Precision

MIN_COSINE = 0.9
"""Rounding to bfloat16 moves a cosine far less; wrong kernels often leave NaN."""

MAX_SHOWN = 8


class WrongArithmetic(RuntimeError):
    """A layer's values or gradients in half precision are wrong."""


class ArithmeticCheck:
    """Compares each layer once, on its activations and gradients of training.

    A layer is compared by itself, with the input and the output gradient that it met, so that
    depth and quantization add no differences of their own.
    """

    def __init__(self, modules: Iterable[nn.Module], precision: Precision):
        self.wrong: list[str] = []
        """Name and fault of each layer that was wrong."""
        self.num_compared = 0
        self._num_checked = 0
        self._hooks = {}
        if precision == "fp32":
            return
        for module in modules:
            # A causal convolution includes the one that it wraps.
            wrapped = {m.conv for m in module.modules() if isinstance(m, CausalConv3d)}
            for name, layer in module.named_modules():
                has_weights = any(True for _ in layer.parameters(recurse=False))
                if isinstance(layer, CausalConv3d) or (has_weights and layer not in wrapped):
                    hook = self._comparing(name, layer)
                    self._hooks[layer] = layer.register_forward_hook(hook, with_kwargs=True)

    def check(self, accelerator: Accelerator) -> None:
        """Raises `WrongArithmetic` in all processes if any layer was wrong."""
        if self.num_compared == self._num_checked:
            return
        self._num_checked = self.num_compared
        if not any_process(accelerator, bool(self.wrong)):
            return
        shown = self.wrong[:MAX_SHOWN] or ["(another process names them)"]
        if len(self.wrong) > MAX_SHOWN:
            shown.append(f"and {len(self.wrong) - MAX_SHOWN} more")
        raise WrongArithmetic(
            "on this CPU the half-precision results of some layers are not those of float32:\n  "
            + "\n  ".join(shown)
            + "\nNo weight was changed. Train with precision='fp32'; check_arithmetic=False trains "
            "without this comparison"
        )

    def _comparing(self, name: str, layer: nn.Module):
        def after_forward(_, args, kwargs, output):
            x = args[0]
            if not isinstance(x, Tensor):
                return  # a module that takes a list of tensors is checked by its layers
            out = _first(output)
            dtype = half_precision(x)
            if dtype is None or not out.requires_grad:
                return
            self._hooks.pop(layer).remove()

            def before_backward(grad):
                once.remove()
                self.num_compared += 1
                fault = compare(layer, x.detach(), args[1:], kwargs, grad.detach(), dtype)
                if fault:
                    self.wrong.append(f"{name}: {fault}")

            once = out.register_hook(before_backward)

        return after_forward


def compare(layer: nn.Module, x: Tensor, rest, kwargs, grad: Tensor, dtype: torch.dtype) -> str:
    """Message on the first value or gradient that differs, or ""."""
    parameters = dict(layer.named_parameters())

    def run(half: bool) -> list[Tensor]:
        leaf = (x if half else x.float()).clone().requires_grad_(x.is_floating_point())
        with torch.enable_grad(), torch.autocast("cpu", dtype, enabled=half):
            value = _first(layer(leaf, *rest, **kwargs))
        of = [leaf, *parameters.values()]
        gradients = torch.autograd.grad(value, of, grad.to(value.dtype), allow_unused=True)
        return [value.detach(), *gradients]

    names = ("value", "input gradient", *(f"gradient of {name}" for name in parameters))
    for name, half, exact in zip(names, run(half=True), run(half=False), strict=True):
        if exact is None or not bool(exact.isfinite().all()):
            continue  # not used, or bad data, which is the skipped steps' concern
        if half is None or not bool(half.isfinite().all()):
            return f"{name} is not finite"
        if not exact.any() and not half.any():
            continue
        cosine = float(F.cosine_similarity(half.double().flatten(), exact.double().flatten(), 0))
        if not cosine >= MIN_COSINE:
            return f"{name} has a cosine of {cosine:.3f} with that of float32"
    return ""


def _first(output: Tensor | tuple) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]

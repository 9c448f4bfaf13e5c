"""Norm over the channels of a code, before quantization."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.layers.arithmetic import layer_norm

CodeNormName = Literal["layer", "rms"]


class CodeNorm(nn.Module):
    """Layer or RMS norm per position and codebook, with a learned gain.

    It keeps latents near the thresholds at any scale of the encoder, so that all codes can be
    reached (vector-quantize-pytorch issue 89). A layer norm also has a learned bias: without one
    its channels sum to 0, and codes whose signs are all equal could never occur.
    """

    def __init__(self, name: CodeNormName, num_codebooks: int, dim: int):
        super().__init__()
        if name not in ("layer", "rms"):
            raise ValueError(f"norm {name!r}: use 'layer', 'rms' or None")
        if name == "layer" and dim < 3:
            raise ValueError(
                f"a layer norm over {dim} channels leaves no freedom for codes: use 'rms'"
            )
        self.dim = dim
        # One axis: optimizers treat parameters of two axes as matrices, with weight decay or Muon.
        self.gain = nn.Parameter(torch.ones(num_codebooks * dim))
        self.bias = nn.Parameter(torch.zeros(num_codebooks * dim)) if name == "layer" else None

    def forward(self, z: Float[Tensor, "*n q d"]) -> Float[Tensor, "*n q d"]:
        gain = self.gain.to(z.dtype).view(-1, self.dim)
        if self.bias is None:
            return z * torch.rsqrt(z.square().mean(dim=-1, keepdim=True) + 1e-6) * gain
        return layer_norm(z) * gain + self.bias.to(z.dtype).view(-1, self.dim)

"""A norm over the channels of one code, before it is quantized."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magvit2_pytorch.layers.arithmetic import layer_norm

CodeNormName = Literal["layer", "rms"]


class CodeNorm(nn.Module):
    """Layer norm or RMS norm of each position and codebook, with a learned gain per channel.

    It keeps latents near the thresholds whatever the encoder's scale, so that codes stay in
    reach (vector-quantize-pytorch issue 89). A layer norm has a learned bias too: without one its
    channels sum to 0, and the codes of equal signs could never occur.
    """

    def __init__(self, kind: CodeNormName, num_codebooks: int, dim: int):
        super().__init__()
        if kind not in ("layer", "rms"):
            raise ValueError(f"norm {kind!r}: use 'layer', 'rms' or None")
        if kind == "layer" and dim < 3:
            raise ValueError(
                f"a layer norm over {dim} channels leaves no freedom to code with: use 'rms'"
            )
        self.kind, self.dim = kind, dim
        # One axis for both: optimizers take what has two for a matrix, to decay or to rotate.
        self.gain = nn.Parameter(torch.ones(num_codebooks * dim))
        self.bias = nn.Parameter(torch.zeros(num_codebooks * dim)) if kind == "layer" else None

    def forward(self, z: Float[Tensor, "*n q d"]) -> Float[Tensor, "*n q d"]:
        gain = self.gain.to(z.dtype).view(-1, self.dim)
        if self.bias is None:
            return z * torch.rsqrt(z.square().mean(dim=-1, keepdim=True) + 1e-6) * gain
        return layer_norm(z) * gain + self.bias.to(z.dtype).view(-1, self.dim)

"""Gated linear recurrence along time, with a state of fixed size."""

import torch
from einops import rearrange
from torch import nn

from magvit2_pytorch.functional import linear_scan, own_copy
from magvit2_pytorch.layers.arithmetic import Linear
from magvit2_pytorch.layers.stateful import ReceptiveField, StatefulLayer
from magvit2_pytorch.types import Context, Past


class GateLoop(StatefulLayer):
    """Gated linear recurrence.

    h[t] = a[t] * h[t - 1] + (1 - a[t]) * v[t], with a in (0, 1). The output is a linear map of
    h times a gate, and the past is h. The recurrence runs in float32 or float64.
    Source: GateLoop (arXiv 2311.01927), the real-valued form. The factor 1 - a keeps the state
    within the range of v.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.to_parts = Linear(dim, dim * 3)
        self.to_out = Linear(dim, dim)

    def forward(self, x, past: Past = None, context: Context = Context()):
        tokens = rearrange(x, "b c t h w -> b t h w c")
        decay, value, gate = self.to_parts(tokens).chunk(3, dim=-1)
        dtype = torch.promote_types(x.dtype, torch.float32)
        decay = decay.to(dtype).sigmoid()
        value = (1 - decay) * value.to(dtype)
        if past is not None:
            value = torch.cat((value[:, :1] + decay[:, :1] * past, value[:, 1:]), dim=1)
        state = linear_scan(decay, value)
        out = self.to_out(state.to(gate.dtype) * nn.functional.silu(gate))
        return rearrange(out, "b t h w c -> b c t h w"), own_copy(state[:, -1:])

    @property
    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField()

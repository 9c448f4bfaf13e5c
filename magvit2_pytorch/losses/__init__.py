"""Losses: pure functions of tensors to a scalar."""

from magvit2_pytorch.losses.reconstruction import RECONSTRUCTION_LOSSES

__all__ = ["RECONSTRUCTION_LOSSES"]

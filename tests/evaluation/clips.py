"""Small files to code, and tokenizers that are fast and exact."""

import torch

from tests.conftest import build
from tests.data.clip_files import make_video

LAYERS = (
    "residual",
    "compress_space",
    "compress_time",
    "attend_time",
    "compress_space",
    "gateloop_time",
)
"""Strides of 2 in time and 4 in space, and every kind of memory of the past."""


def exact(quantizer="lfq", layers=LAYERS, **options):
    """In float64 no code is near enough to a border for the order of additions to move it."""
    return build(*layers, quantizer=quantizer, **options).double()


def clip(folder, num_frames=7, height=18, width=22, name="clip.mkv", **options):
    """Lossless, so that what is read is what was made, by whichever way it is read."""
    codec = options.pop("codec", "ffv1")
    return make_video(folder / name, num_frames, height, width, codec=codec, **options)


def mean_difference(ours, theirs):
    """Between bytes."""
    return float((ours.float() - theirs.float()).abs().mean()) if len(ours) else float("nan")


def seeded_codes(tokenizer, *grid):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(tokenizer.codebook_size, grid, generator=generator)

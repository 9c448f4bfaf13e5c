"""Small 1-D tokenizers, one of every kind, for tests."""

import torch

from magvit2_pytorch.tokenizer_1d import Tokenizer1d

SMALL = dict(
    num_frames=8, image_size=32, num_tokens=(2, 16), quantizer=dict(name="fsq", levels=(7, 5, 5)),
    encoder_dim=24, encoder_depth=2, encoder_heads=2, decoder_dim=24, decoder_depth=2,
    decoder_heads=2,
)  # fmt: skip

KINDS = {
    "anchored": {},
    "learned": dict(slots="learned"),
    "shared-keys": dict(heads_per_kv_head=2),
    "lfq": dict(quantizer=dict(name="lfq", codebook_size=64)),
    "vector": dict(quantizer=dict(name="vector", dim=4, codebook_size=32)),
    "grey": dict(channels=1, patch_size=(2, 4)),
    "blocks": dict(block_frames=4),
    "blocks-of-8": dict(block_frames=8, block_window=3),
    "blocks-alone": dict(block_frames=4, block_window=1),
}


def narrow(kind: str = "anchored", **options) -> Tokenizer1d:
    """A small tokenizer in eval mode and float64."""
    return Tokenizer1d(**{**SMALL, **KINDS[kind], **options}).double().eval()


def random_clip(*size: int, channels: int = 3) -> torch.Tensor:
    """A video `c t h w` in float64."""
    return torch.rand(channels, *size, dtype=torch.float64) * 2 - 1

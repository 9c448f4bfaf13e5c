"""One run of frames through a tokenizer, and the pasts that the next run needs.

Frames are bytes `t h w c` as files have them; padding to the tokenizer's strides happens here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from magvit2_pytorch.data import to_float
from magvit2_pytorch.evaluation.preprocess import pad_space, pad_time
from magvit2_pytorch.functional import autocast, detach_past
from magvit2_pytorch.quantizers import Quantized
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.types import Frames, Latents, Past, Precision, Video

DEFAULT_CHUNK_FRAMES = 16


@contextmanager
def inference(tokenizer: VideoTokenizer, precision: Precision) -> Iterator[None]:
    """Eval mode, no gradients, `precision`; the tokenizer's own mode comes back afterwards."""
    was_training = tokenizer.training
    tokenizer.eval()
    try:
        with torch.no_grad(), autocast(device_of(tokenizer), precision):
            yield
    finally:
        tokenizer.train(was_training)


def device_of(tokenizer: VideoTokenizer) -> torch.device:
    """Where its weights are, and where its video has to be."""
    return next(tokenizer.parameters()).device


def encode_run(
    tokenizer: VideoTokenizer, frames: Frames, past: Past, precision: Precision
) -> tuple[Quantized, Past]:
    """Quantized latents and codes of the next frames, and the past for those after.

    Only the last run of a video may have frames that fill no latent: its last one is repeated.
    """
    with inference(tokenizer, precision):
        video = to_float(frames.to(device_of(tokenizer)))[None]
        video = pad_space(video, tokenizer.space_factor)
        video = pad_time(video, tokenizer.time_factor, first=past is None)
        latents, past = tokenizer.encode_chunk(video, past)
        # Pasts are slices of whole activations, which they would keep in memory.
        return tokenizer.quantize(latents), detach_past(past)


def decode_run(
    tokenizer: VideoTokenizer, quantized: Latents, past: Past, precision: Precision
) -> tuple[Video, Past]:
    """The frames of the next latents, padding and all, and the past for those after."""
    with inference(tokenizer, precision):
        video, past = tokenizer.decode_chunk(quantized, past)
        return video, detach_past(past)

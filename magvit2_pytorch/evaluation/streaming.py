"""One run of frames through a tokenizer, and the pasts that the next run needs.

Frames are bytes `t h w c` as files have them; padding to the tokenizer's strides happens here.
"""

from magvit2_pytorch.data import to_float
from magvit2_pytorch.evaluation.preprocess import pad_space
from magvit2_pytorch.functional import detach_past, pad_frames
from magvit2_pytorch.quantizers import Quantized
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.streaming import device_of, inference
from magvit2_pytorch.types import Frames, Latents, Past, Precision, Video

DEFAULT_CHUNK_FRAMES = 16


def encode_run(
    tokenizer: VideoTokenizer, frames: Frames, past: Past, precision: Precision
) -> tuple[Quantized, Past]:
    """Quantized latents and codes of the next frames, and the past for those after.

    Only the last run of a video may have frames that fill no latent: its last one is repeated.
    """
    with inference(tokenizer, precision):
        video = to_float(frames.to(device_of(tokenizer)))[None]
        video = pad_space(video, tokenizer.space_factor)
        video = pad_frames(video, tokenizer.time_factor, first=past is None)
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

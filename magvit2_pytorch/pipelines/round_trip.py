"""Reconstruction of videos of any size, padded and cropped again."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from magvit2_pytorch.functional import pad_frames
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.pipelines.media_file import pad_space
from magvit2_pytorch.quantizers.quantizer import Quantized
from magvit2_pytorch.tokenizer.streaming import EncodeStream
from magvit2_pytorch.tokenizer_1d import AnyTokenizer, TokenCodes, Tokenizer1d
from magvit2_pytorch.tokenizer_1d.sequence_streams import TokenEncodeStream
from magvit2_pytorch.types import Codes, Video


def encode_padded(stream: EncodeStream | TokenEncodeStream, video: Video) -> Quantized:
    """Encodes the next chunk of a video, padded in space and time.

    Every chunk but the last has as many frames as the strides ask for.
    """
    if isinstance(stream, TokenEncodeStream):
        return stream.encode_parts(video)
    padded = pad_space(video, stream.tokenizer.space_factor)
    is_first = not stream.num_frames
    return stream.push_quantized(pad_frames(padded, stream.tokenizer.time_factor, is_first))


def reconstruct_chunks(
    tokenizer: AnyTokenizer, chunks: Iterable[Tensor], inference: Inference = Inference()
) -> Iterator[tuple[Tensor, Tensor, Codes | TokenCodes | None]]:
    """Frames, their reconstruction, and the codes of each chunk of one video.

    Chunks are `b c t h w`, of different lengths. If the decoder looks ahead, frames wait for their
    reconstruction, and the last ones come without codes. A continuous tokenizer has no codes.
    """
    device = inference.frames_device(tokenizer)
    encoder, decoder = inference.encode_stream(tokenizer), None
    waiting: Tensor | None = None
    for video in chunks:
        if decoder is None:
            decoder = inference.decode_stream(tokenizer, size=tuple(video.shape[-2:]))
        quantized = encode_padded(encoder, video.to(device))
        if isinstance(tokenizer, Tokenizer1d):
            lengths = [part.shape[2] for part in video.split(tokenizer.time_factor, dim=2)]
            parts = quantized.quantized.split(encoder.count, dim=-1)
            frames = [decoder.push(*pair) for pair in zip(parts, lengths, strict=True)]
            recon = torch.cat(frames, dim=2)
        else:
            recon = decoder.push(quantized.quantized.to(device))
        waiting = video if waiting is None else torch.cat((waiting, video), dim=2)
        num_frames, height, width = waiting.shape[2:]
        recon = recon[:, :, :num_frames, :height, :width]
        yield waiting[:, :, : recon.shape[2]], recon, quantized.codes
        waiting = waiting[:, :, recon.shape[2] :]
    recon = None if decoder is None else decoder.flush()
    if recon is not None and waiting is not None:
        num_frames, height, width = waiting.shape[2:]
        yield waiting, recon[:, :, :num_frames, :height, :width], None


def reconstruct_clip(
    tokenizer: AnyTokenizer, video: Video, inference: Inference = Inference()
) -> tuple[Video, Codes | TokenCodes | None]:
    """Reconstruction and codes of a whole clip, computed in chunks."""
    step = inference.chunk_latents(tokenizer) * tokenizer.time_factor
    # The first latent stands for a single frame and belongs to the first chunk.
    first = step if isinstance(tokenizer, Tokenizer1d) else 1 + step
    chunks = video.tensor_split(tuple(range(first, video.shape[2], step)), dim=2)
    _, recon, codes = zip(*reconstruct_chunks(tokenizer, chunks, inference), strict=True)
    codes = [new for new in codes if new is not None]
    video = torch.cat(recon, dim=2).to(tokenizer.device)
    return video, torch.cat(codes, dim=1) if codes else None

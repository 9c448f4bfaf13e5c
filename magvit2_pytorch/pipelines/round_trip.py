"""Reconstruction of videos of any size: padded to the strides, and cropped again."""

import torch

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


class RoundTrip:
    """Encodes and decodes one video, chunk by chunk."""

    def __init__(self, tokenizer: AnyTokenizer, inference: Inference = Inference()):
        self.device = inference.frames_device(tokenizer)
        self.tokenizer, self.inference = tokenizer, inference
        self.encoder = inference.encode_stream(tokenizer)
        self.decoder = None
        """A stream that the first chunk starts, as it knows the size of frames."""

    def push(self, video: Video) -> tuple[Video, Codes | TokenCodes | None]:
        """Reconstruction and codes of the next chunk; a continuous tokenizer has no codes."""
        num_frames, height, width = video.shape[2:]
        if self.decoder is None:
            self.decoder = self.inference.decode_stream(self.tokenizer, size=(height, width))
        quantized = encode_padded(self.encoder, video.to(self.device))
        if isinstance(self.tokenizer, Tokenizer1d):
            lengths = [part.shape[2] for part in video.split(self.tokenizer.time_factor, dim=2)]
            parts = quantized.quantized.split(self.encoder.count, dim=-1)
            frames = [self.decoder.push(*pair) for pair in zip(parts, lengths, strict=True)]
            return torch.cat(frames, dim=2), quantized.codes
        recon = self.decoder.push(quantized.quantized.to(self.device))
        return recon[:, :, :num_frames, :height, :width], quantized.codes


def reconstruct_clip(
    tokenizer: AnyTokenizer, video: Video, inference: Inference = Inference()
) -> tuple[Video, Codes | TokenCodes | None]:
    """Reconstruction and codes of a whole clip, computed in chunks."""
    step = inference.chunk_latents(tokenizer) * tokenizer.time_factor
    # The first latent stands for a single frame and belongs to the first chunk.
    first = step if isinstance(tokenizer, Tokenizer1d) else 1 + step
    chunks = video.tensor_split(tuple(range(first, video.shape[2], step)), dim=2)
    round_trip = RoundTrip(tokenizer, inference)
    recon, codes = zip(*(round_trip.push(chunk) for chunk in chunks), strict=True)
    video = torch.cat(recon, dim=2).to(tokenizer.device)
    return video, None if codes[0] is None else torch.cat(codes, dim=1)

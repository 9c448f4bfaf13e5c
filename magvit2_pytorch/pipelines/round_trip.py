"""Reconstruction of videos of any size: padded to the strides, and cropped again."""

import torch

from magvit2_pytorch.functional import pad_frames
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.pipelines.media_file import pad_space
from magvit2_pytorch.quantizers.quantizer import Quantized
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.tokenizer.streaming import EncodeStream
from magvit2_pytorch.types import Codes, Video


def encode_padded(stream: EncodeStream, video: Video) -> Quantized:
    """Encodes the next chunk of a video, padded in space and time.

    Every chunk but the last has as many frames as the strides ask for.
    """
    padded = pad_space(video, stream.tokenizer.space_factor)
    is_first = not stream.num_frames
    return stream.push_quantized(pad_frames(padded, stream.tokenizer.time_factor, is_first))


class RoundTrip:
    """Encodes and decodes one video, chunk by chunk."""

    def __init__(self, tokenizer: VideoTokenizer, inference: Inference = Inference()):
        self.device = inference.frames_device(tokenizer)
        self.encoder = inference.encode_stream(tokenizer)
        self.decoder = inference.decode_stream(tokenizer)

    def push(self, video: Video) -> tuple[Video, Codes | None]:
        """Reconstruction and codes of the next chunk; a continuous tokenizer has no codes."""
        num_frames, height, width = video.shape[2:]
        quantized = encode_padded(self.encoder, video.to(self.device))
        recon = self.decoder.push(quantized.quantized.to(self.device))
        return recon[:, :, :num_frames, :height, :width], quantized.codes


def reconstruct_clip(
    tokenizer: VideoTokenizer, video: Video, inference: Inference = Inference()
) -> tuple[Video, Codes | None]:
    """Reconstruction and codes of a whole clip, computed in chunks."""
    step = inference.chunk_latents(tokenizer) * tokenizer.time_factor
    # The first latent stands for a single frame and belongs to the first chunk.
    chunks = video.tensor_split(tuple(range(1 + step, video.shape[2], step)), dim=2)
    round_trip = RoundTrip(tokenizer, inference)
    recon, codes = zip(*(round_trip.push(chunk) for chunk in chunks), strict=True)
    video = torch.cat(recon, dim=2).to(tokenizer.device)
    return video, None if codes[0] is None else torch.cat(codes, dim=1)

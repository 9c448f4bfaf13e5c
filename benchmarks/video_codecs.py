"""Conventional video codecs on the same frames: compressed bytes and decoded frames."""

import io
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.types import Frames

PixelFormat = Literal["yuv420p", "yuv444p"]
"""Chroma at half the width and height, as in nearly all video, or at full resolution."""

RED, BLUE = 0.2126, 0.0722
"""Luma coefficients, Rec. 709; green has the rest."""
LUMA_RANGE, CHROMA_RANGE = 219, 224
"""Range of 8-bit values, "limited range"."""


@dataclass(frozen=True)
class Codec:
    """An FFmpeg encoder at slow settings, and its decoder.

    One pass at constant quality (CRF); one group of pictures over the whole clip unless the
    encoder detects a cut; it may look ahead and code frames out of order, which a causal tokenizer
    may not. x264 and x265 are tuned for PSNR, as SVT-AV1 is by default.
    """

    encoder: str
    decoder: str
    stream_format: str
    """FFmpeg's name of the raw stream format, without container."""
    idle_units: str
    """Types of units that decoders do not need, in the syntax of FFmpeg's `filter_units`."""
    qualities: tuple[int, ...]
    """CRF values of a rate-distortion curve, best first."""
    options: dict[str, str]
    """Options of the encoder; {crf} is replaced by the quality."""
    min_side: int = 1
    """Smallest side in pixels at which the encoder works."""


CODECS = {
    "H.264": Codec(
        "libx264", "h264", "h264", "6|9", (18, 23, 28, 33, 38, 43, 47, 51),
        # Its AVX-512 code reads undefined memory in small frames: streams differ from run to
        # run, and are up to 4 % longer.
        {"preset": "veryslow", "tune": "psnr", "crf": "{crf}", "x264-params": "asm=0"},
    ),
    "H.265": Codec(
        "libx265", "hevc", "hevc", "35|39|40", (18, 23, 28, 33, 38, 43, 47, 51),
        {"preset": "veryslow", "tune": "psnr", "crf": "{crf}", "x265-params": "log-level=error"},
        # Below this (48 x 34, 32 x 40) x265 4 writes out of bounds, and the process crashes.
        min_side=64,
    ),
    # FFmpeg's crf option ends at 63, that of the encoder at 70.
    "AV1": Codec(
        "libsvtav1", "libdav1d", "obu", "2", (20, 32, 43, 51, 57, 61, 63, 66, 70),
        {"preset": "2", "svtav1-params": "crf={crf}"},
    ),
}  # fmt: skip
"""By the name in tables. SVT-AV1 prints to stderr unless the environment has SVT_LOG=1."""


class CodedClip(NamedTuple):
    """A clip encoded and decoded by a codec."""

    packets: list[bytes]
    """The complete input of the decoder."""
    frames: Frames
    """The decoded frames."""

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.packets))


def available_codecs() -> dict[str, Codec]:
    """The codecs in `CODECS` that this PyAV can both write and read."""
    from av import codecs_available

    return {
        name: codec
        for name, codec in CODECS.items()
        if {codec.encoder, codec.decoder} <= codecs_available
    }


def code_frames(
    frames: Frames,
    codec: Codec,
    crf: int,
    fps: float = 25.0,
    pixel_format: PixelFormat = "yuv420p",
) -> CodedClip:
    """Encodes a clip in memory and decodes the encoded bytes.

    The bytes are the raw stream with its parameter sets, which a decoder needs, without container
    and without units that decoders skip: delimiters, and the name and settings of the encoder (600
    bytes for x264). For `yuv420p`, odd sides are made even by repeating the last row or column, and
    cropped afterwards. Frames go through `to_planes` and back; that loss is part of the codec's,
    and `color_round_trip` measures it.

    Raises `ValueError` on frames that are not RGB or smaller than `min_side`, and if the encoder
    refuses them or `crf`.
    """
    from av.error import FFmpegError

    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.numel():
        raise ValueError(
            f"frames have shape {tuple(frames.shape)}: give t h w 3, at least one frame"
        )
    height, width = frames.shape[1:3]
    if min(height, width) < codec.min_side:
        raise ValueError(
            f"frames of {height} x {width} are too small for {codec.encoder}, which needs "
            f"{codec.min_side} pixels to a side"
        )
    try:
        packets = _encode(to_planes(frames, pixel_format), codec, crf, fps, pixel_format)
        planes = _decode(packets, codec, pixel_format)
    except FFmpegError as error:
        raise ValueError(
            f"{codec.encoder} cannot encode {len(frames)} frames of {height} x {width} in "
            f"{pixel_format} at crf {crf}: {error.strerror}"
        ) from error
    if len(planes) != len(frames):
        raise ValueError(f"{codec.decoder} returned {len(planes)} of {len(frames)} frames")
    decoded = from_planes(planes, pixel_format)[:, :height, :width]
    return CodedClip(packets, decoded)


def color_round_trip(frames: Frames, pixel_format: PixelFormat = "yuv420p") -> Frames:
    """Frames after conversion to YCbCr and back, without coding.

    This is an upper bound of the quality of a codec.
    """
    height, width = frames.shape[1:3]
    return from_planes(to_planes(frames, pixel_format), pixel_format)[:, :height, :width]


def to_planes(frames: Frames, pixel_format: PixelFormat) -> Tensor:
    """Converts RGB to 8-bit YCbCr in PyAV's layout.

    Rec. 709, limited range, rounded once. `yuv444p` gives `t 3 h w`; `yuv420p` gives `t y w`
    with y = 3/2 h, sides padded to be even, and the chroma planes one after the other in the rows
    below luma. Chroma is the mean of four pixels.
    """
    if pixel_format not in ("yuv420p", "yuv444p"):
        raise ValueError(f"pixel_format is {pixel_format!r}: use 'yuv420p' or 'yuv444p'")
    rgb = rearrange(frames, "t h w c -> t c h w").double() / 255
    if pixel_format == "yuv420p":
        height, width = rgb.shape[-2:]
        rgb = F.pad(rgb, (0, width % 2, 0, height % 2), mode="replicate")
    ycc = torch.einsum("dc, t c h w -> t d h w", _rgb_to_ycc(), rgb)
    luma, chroma = ycc[:, :1] * LUMA_RANGE + 16, ycc[:, 1:] * CHROMA_RANGE + 128
    if pixel_format == "yuv444p":
        return torch.cat((luma, chroma), dim=1).round().to(torch.uint8)
    chroma = F.avg_pool2d(chroma, 2)
    parts = (luma.flatten(1), chroma.flatten(1))
    return torch.cat(parts, dim=1).round().to(torch.uint8).unflatten(1, (-1, luma.shape[-1]))


def from_planes(planes: Tensor, pixel_format: PixelFormat) -> Frames:
    """Inverse of `to_planes` up to rounding; chroma of `yuv420p` is upsampled bicubically."""
    values = planes.double()
    if pixel_format == "yuv420p":
        rows, width = values.shape[1] * 2 // 3, values.shape[2]
        luma = values[:, None, :rows]
        chroma = rearrange(values[:, rows:].flatten(1), "t (d h w) -> t d h w", d=2, w=width // 2)
        chroma = F.interpolate(chroma, scale_factor=2, mode="bicubic", align_corners=False)
    else:
        luma, chroma = values[:, :1], values[:, 1:]
    ycc = torch.cat(((luma - 16) / LUMA_RANGE, (chroma - 128) / CHROMA_RANGE), dim=1)
    rgb = torch.einsum("dc, t c h w -> t h w d", _rgb_to_ycc().inverse(), ycc)
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)


def _rgb_to_ycc() -> Float[Tensor, "3 3"]:
    """Matrix to luma in [0, 1] and chroma in [-1/2, 1/2]."""
    luma = torch.tensor((RED, 1 - RED - BLUE, BLUE), dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    blue, red = (eye[2] - luma) / (2 * (1 - BLUE)), (eye[0] - luma) / (2 * (1 - RED))
    return torch.stack((luma, blue, red))


def _encode(
    planes: Tensor, codec: Codec, crf: int, fps: float, pixel_format: PixelFormat
) -> list[bytes]:
    """Packets of the stream, without units that decoders do not need."""
    import av
    from av.bitstream import BitStreamFilterContext

    rate = Fraction(fps).limit_denominator(1001)
    with av.open(io.BytesIO(), "w", format=codec.stream_format) as container:
        stream = container.add_stream(codec.encoder, rate=rate)
        stream.options = {name: text.format(crf=crf) for name, text in codec.options.items()}
        stream.pix_fmt = pixel_format
        context = stream.codec_context
        # One thread: the decisions of x264 and x265 depend on the number of threads.
        context.gop_size, context.thread_count = len(planes), 1
        context.colorspace = context.color_primaries = context.color_trc = 1  # Rec. 709
        context.color_range = 1  # limited
        pictures = [_picture(plane, pixel_format, i, rate) for i, plane in enumerate(planes)]
        stream.height, stream.width = pictures[0].height, pictures[0].width
        packets = [packet for picture in pictures for packet in stream.encode(picture)]
        packets += stream.encode(None)
        unit_filter = BitStreamFilterContext(
            f"filter_units=remove_types={codec.idle_units}", stream
        )
        filtered = [part for packet in [*packets, None] for part in unit_filter.filter(packet)]
        return [bytes(packet) for packet in filtered]


def _picture(plane: Tensor, pixel_format: PixelFormat, number: int, rate: Fraction) -> Any:
    from av import VideoFrame

    picture = VideoFrame.from_ndarray(plane.numpy(), format=pixel_format)
    picture.pts, picture.time_base = number, 1 / rate
    return picture


def _decode(packets: list[bytes], codec: Codec, pixel_format: PixelFormat) -> Tensor:
    import av

    context = av.CodecContext.create(codec.decoder, "r")
    pictures = [p for packet in packets for p in context.decode(av.Packet(packet))]
    pictures += context.decode(None)
    formats = {picture.format.name for picture in pictures}
    assert formats <= {pixel_format}, f"{codec.decoder} returned {formats}"
    return torch.stack([torch.from_numpy(picture.to_ndarray()) for picture in pictures])

"""What conventional video codecs make of the same frames: bytes, and the frames these give back."""

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
"""Colour at half the width and height, as nearly all video has it, or at full resolution."""

RED, BLUE = 0.2126, 0.0722
"""Shares of luma, Rec. 709; green has the rest."""
LUMA_RANGE, CHROMA_RANGE = 219, 224
"""8-bit steps from the least to the most, "limited range"."""


@dataclass(frozen=True)
class Codec:
    """An encoder of FFmpeg's at its most patient, and what reads its stream again.

    One pass at constant quality (CRF); one group of pictures over the whole clip unless the
    encoder sees a cut; it may look ahead and code frames out of order, which a causal tokenizer
    may not. x264 and x265 are tuned for PSNR, as is SVT-AV1 by itself.
    """

    encoder: str
    decoder: str
    stream_format: str
    """FFmpeg's name of the bare stream, without a container."""
    idle_units: str
    """Types of units that no decoder needs, as FFmpeg's `filter_units` takes them."""
    qualities: tuple[int, ...]
    """CRF values, best first, that make a curve."""
    options: dict[str, str]
    """The encoder's own, with the quality in the place of {crf}."""
    min_side: int = 1
    """Pixels to a side from which on the encoder can be trusted."""


CODECS = {
    "H.264": Codec(
        "libx264", "h264", "h264", "6|9", (18, 23, 28, 33, 38, 43, 47, 51),
        # Its AVX-512 reads at random in small frames: each time another stream, up to 4 % longer.
        {"preset": "veryslow", "tune": "psnr", "crf": "{crf}", "x264-params": "asm=0"},
    ),
    "H.265": Codec(
        "libx265", "hevc", "hevc", "35|39|40", (18, 23, 28, 33, 38, 43, 47, 51),
        {"preset": "veryslow", "tune": "psnr", "crf": "{crf}", "x265-params": "log-level=error"},
        # Below it (48 x 34, 32 x 40) x265 4 writes where it should not, and the process dies.
        min_side=64,
    ),
    # FFmpeg's own crf ends at 63, the encoder's at 70.
    "AV1": Codec(
        "libsvtav1", "libdav1d", "obu", "2", (20, 32, 43, 51, 57, 61, 63, 66, 70),
        {"preset": "2", "svtav1-params": "crf={crf}"},
    ),
}  # fmt: skip
"""By the name in tables. SVT-AV1 talks on stderr unless SVT_LOG=1 is in the environment."""


class CodedClip(NamedTuple):
    """A clip after a codec."""

    packets: list[bytes]
    """All that the decoder was given."""
    frames: Frames
    """What it gave back."""

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.packets))


def available_codecs() -> dict[str, Codec]:
    """Those of `CODECS` that this PyAV can both write and read."""
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
    """Encodes a clip in memory, counts its bytes and decodes from nothing but these.

    Counted is the bare stream with its parameter sets, which a decoder needs, but no container,
    and nothing that decoders pass over: the encoder's name and settings (600 bytes of x264's),
    delimiters. Odd sides are made even for `yuv420p` by repeating the last row or column, and cut
    again. Frames go through `to_planes` and back, whose loss is part of the codec's;
    `color_round_trip` says how large it is.

    Raises `ValueError` on frames that are not RGB or below `min_side`, and where the encoder
    refuses them or `crf`.
    """
    from av.error import FFmpegError

    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.numel():
        raise ValueError(f"frames have shape {tuple(frames.shape)}: give t h w 3, one or more")
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
            f"{codec.encoder} does not code {len(frames)} frames of {height} x {width} in "
            f"{pixel_format} at crf {crf}: {error.strerror}"
        ) from error
    if len(planes) != len(frames):
        raise ValueError(f"{codec.decoder} gave {len(planes)} frames back of {len(frames)}")
    decoded = from_planes(planes, pixel_format)[:, :height, :width]
    return CodedClip(packets, decoded)


def color_round_trip(frames: Frames, pixel_format: PixelFormat = "yuv420p") -> Frames:
    """To the codec's colours and back with nothing coded: no codec here can be better."""
    height, width = frames.shape[1:3]
    return from_planes(to_planes(frames, pixel_format), pixel_format)[:, :height, :width]


def to_planes(frames: Frames, pixel_format: PixelFormat) -> Tensor:
    """RGB to YCbCr, Rec. 709, limited range, rounded once: bytes as PyAV lays them out.

    `yuv444p` gives `t 3 h w`; `yuv420p` `t y w` with y = 3/2 h, the small planes one after the
    other in the rows below, of sides made even; their chroma is the mean of four pixels.
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
    """Undoes `to_planes`, but for rounding and, of `yuv420p`, chroma's detail (bicubic)."""
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
    """Luma in [0, 1] and the differences of blue and red from it in [-1/2, 1/2]."""
    luma = torch.tensor((RED, 1 - RED - BLUE, BLUE), dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    blue, red = (eye[2] - luma) / (2 * (1 - BLUE)), (eye[0] - luma) / (2 * (1 - RED))
    return torch.stack((luma, blue, red))


def _encode(
    planes: Tensor, codec: Codec, crf: int, fps: float, pixel_format: PixelFormat
) -> list[bytes]:
    """The stream's packets, without units that no decoder needs."""
    import av
    from av.bitstream import BitStreamFilterContext

    rate = Fraction(fps).limit_denominator(1001)
    with av.open(io.BytesIO(), "w", format=codec.stream_format) as container:
        stream = container.add_stream(codec.encoder, rate=rate)
        stream.options = {name: text.format(crf=crf) for name, text in codec.options.items()}
        stream.pix_fmt = pixel_format
        context = stream.codec_context
        # One thread: with more, x264's and x265's decisions depend on how many there are.
        context.gop_size, context.thread_count = len(planes), 1
        context.colorspace = context.color_primaries = context.color_trc = 1  # Rec. 709
        context.color_range = 1  # limited
        pictures = [_picture(plane, pixel_format, i, rate) for i, plane in enumerate(planes)]
        stream.height, stream.width = pictures[0].height, pictures[0].width
        packets = [packet for picture in pictures for packet in stream.encode(picture)]
        packets += stream.encode(None)
        needed = BitStreamFilterContext(f"filter_units=remove_types={codec.idle_units}", stream)
        kept = [part for packet in [*packets, None] for part in needed.filter(packet)]
        return [bytes(packet) for packet in kept]


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
    found = {picture.format.name for picture in pictures}
    assert found <= {pixel_format}, f"{codec.decoder} gave {found}"
    return torch.stack([torch.from_numpy(picture.to_ndarray()) for picture in pictures])

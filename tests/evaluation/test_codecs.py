"""Codecs: what is counted is what a decoder needs, and what comes back is what it gives."""

import io
import re
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from video_codecs import (
    CODECS,
    available_codecs,
    code_frames,
    color_round_trip,
    from_planes,
    to_planes,
)

from magvit2_pytorch.media.frames import to_float
from magvit2_pytorch.metrics.quality import psnr

AVAILABLE = available_codecs()
NAMES = sorted(AVAILABLE)
DELIMITER = b"\x12\x00"
"""An AV1 temporal delimiter, which a demuxer of the bare stream wants before each picture."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("SVT_LOG", "1")


def clip(num_frames=5, height=64, width=80, channels=3):
    """Soft shapes that move, with some noise."""
    shapes = F.interpolate(torch.rand(1, channels, 6, 8), size=(height, width), mode="bicubic")[0]
    frames = torch.stack([shapes.roll((2 * i, 3 * i), (1, 2)) for i in range(num_frames)])
    noisy = frames + 0.02 * torch.randn(num_frames, channels, height, width)
    return (noisy.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1)


def decibels(recon, real):
    return float(psnr(to_float(recon)[None], to_float(real)[None]))


def test_common_codecs_are_here():
    assert {"H.264", "H.265"} <= set(NAMES)
    assert NAMES[0].startswith("AV1")


def test_codecs_that_are_missing_are_left_out(monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"libx264", "h264", "libx265", "libsvtav1"})
    assert list(available_codecs()) == ["H.264"]


@pytest.mark.parametrize("name", NAMES)
def test_more_bytes_for_less_error(name):
    codec, frames = AVAILABLE[name], clip()
    best, *_, worst = codec.qualities
    coded = [code_frames(frames, codec, crf) for crf in (best, (best + worst) // 2, worst)]
    sizes, errors = [c.num_bytes for c in coded], [decibels(c.frames, frames) for c in coded]
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors, reverse=True)
    assert sizes[0] > 2 * sizes[-1]
    assert errors[0] > errors[-1] + 5
    assert errors[0] < decibels(color_round_trip(frames), frames)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
def test_a_file_of_the_counted_bytes_plays(name, pixel_format):
    codec, frames = AVAILABLE[name], clip()
    if name.startswith("AV1") and pixel_format == "yuv444p":
        pytest.skip("SVT-AV1 has 4:2:0 only")
    coded = code_frames(frames, codec, 30, pixel_format=pixel_format)
    delimiter = DELIMITER if codec.stream_format == "obu" else b""
    file = io.BytesIO(b"".join(delimiter + packet for packet in coded.packets))
    with av.open(file, format=codec.stream_format) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        pictures = [picture for packet in packets for picture in packet.decode()]
        pictures += container.streams.video[0].decode(None)
    size = sum(packet.size for packet in packets) - len(delimiter) * len(coded.packets)
    assert coded.num_bytes == size == sum(map(len, coded.packets))
    planes = torch.stack([torch.from_numpy(picture.to_ndarray()) for picture in pictures])
    assert torch.equal(from_planes(planes, pixel_format), coded.frames)


def test_what_no_decoder_needs_is_not_counted():
    frames = clip()
    for name, is_message in (
        ("H.264", lambda unit: unit[0] & 31 in (6, 9)),
        ("H.265", lambda unit: unit[0] >> 1 in (35, 39, 40)),
    ):
        stream = b"".join(code_frames(frames, CODECS[name], 40).packets)
        units = re.split(b"\x00\x00\x01", stream)[1:]
        assert len(units) >= 2 + len(frames)
        assert not any(map(is_message, units))


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
def test_codecs_that_lose_nothing_give_the_conversion(pixel_format):
    frames = clip(3, 66, 78)
    exact = color_round_trip(frames, pixel_format)
    x265 = CODECS["H.265"]
    options = {"x265-params": f"{x265.options['x265-params']}:lossless=1"}
    for codec in (CODECS["H.264"], replace(x265, options=x265.options | options)):
        coded = code_frames(frames, codec, 0, pixel_format=pixel_format)
        assert torch.equal(coded.frames, exact)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 65, 79), (5, 79, 65), (2, 64, 64)])
def test_single_frames_and_odd_sides(name, shape):
    frames = clip(*shape)
    best = AVAILABLE[name].qualities[0]
    coded = code_frames(frames, AVAILABLE[name], best, fps=29.97)
    assert coded.frames.shape == frames.shape
    assert coded.frames.dtype == torch.uint8
    assert decibels(coded.frames, frames) > 27


def test_coding_again_gives_the_same_bytes():
    frames = clip()
    for codec in AVAILABLE.values():
        assert code_frames(frames, codec, 35).packets == code_frames(frames, codec, 35).packets


@pytest.mark.parametrize(("rgb", "ycc"), [
    ((0, 0, 0), (16, 128, 128)), ((255, 255, 255), (235, 128, 128)), ((255, 0, 0), (63, 102, 240)),
    ((0, 255, 0), (173, 42, 26)), ((0, 0, 255), (32, 240, 118)),
])  # fmt: skip
def test_colours_of_rec_709(rgb, ycc):
    frames = torch.tensor(rgb, dtype=torch.uint8).expand(1, 2, 2, 3)
    assert to_planes(frames, "yuv444p")[0, :, 0, 0].tolist() == list(ycc)
    assert to_planes(frames, "yuv420p")[0].tolist() == [[ycc[0]] * 2, [ycc[0]] * 2, list(ycc[1:])]
    for pixel_format in ("yuv420p", "yuv444p"):
        back = color_round_trip(frames[:, :1, :1].expand(1, 3, 5, 3), pixel_format).int()
        assert (back - torch.tensor(rgb)).abs().max() <= 2


def test_conversion_is_that_of_ffmpeg():
    frames = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8)
    picture = av.VideoFrame.from_ndarray(frames[0].numpy(), format="rgb24")
    theirs = picture.reformat(format="yuv444p", dst_colorspace="ITU709", dst_color_range="MPEG")
    ours = to_planes(frames, "yuv444p")[0].numpy().astype(int)
    assert np.abs(ours - theirs.to_ndarray().astype(int)).max() <= 1
    assert (color_round_trip(frames, "yuv444p").int() - frames.int()).abs().max() <= 3


def test_half_resolution_colour_is_laid_out_as_ffmpeg_reads_it():
    colours = torch.rand(1, 3, 2, 2)
    smooth = F.interpolate(colours, size=(64, 96), mode="bilinear", align_corners=True)
    frames = (smooth * 255).round().to(torch.uint8).movedim(1, -1)
    planes = to_planes(frames, "yuv420p")
    picture = av.VideoFrame.from_ndarray(planes[0].numpy(), format="yuv420p")
    theirs = picture.reformat(format="rgb24", src_colorspace="ITU709", src_color_range="MPEG")
    ours = from_planes(planes, "yuv420p")[0].int()
    assert (ours - torch.from_numpy(theirs.to_ndarray()).int()).abs().float().mean() < 2


def test_grey_keeps_its_detail_at_half_resolution_colour():
    frames = clip(2, 31, 45, channels=1).expand(-1, -1, -1, 3)
    assert (color_round_trip(frames).int() - frames.int()).abs().max() <= 1


@pytest.mark.parametrize(("shape", "options", "message"), [
    ((2, 32, 32, 1), {}, "give t h w 3"),
    ((0, 32, 32, 3), {}, "give t h w 3"),
    ((2, 64, 62, 3), {}, "64 x 62 are too small for libx265"),
    ((2, 64, 64, 3), {"pixel_format": "rgb24"}, "use 'yuv420p' or 'yuv444p'"),
    ((2, 64, 66, 3), {"crf": 99}, "libx265 cannot encode 2 frames of 64 x 66 in yuv420p at crf 99"),
])  # fmt: skip
def test_what_cannot_be_coded_is_refused(shape, options, message, without_type_checks):
    frames = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        code_frames(frames, CODECS["H.265"], **{"crf": 30, **options})

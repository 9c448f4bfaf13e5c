"""Audio of another file: the same packets or the same tone, at the same time."""

from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import av
import numpy as np
import pytest
import torch

from magvit2_pytorch.media import audio as audio_track
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.media.video_writer import VideoWriter
from tests.data.clip_files import make_audio, make_film

FRAME = torch.full((16, 16, 3), 90, dtype=torch.uint8)


class Sound(NamedTuple):
    """Audio of a file; times in seconds from the first frame of its video."""

    codec: str
    packets: list[bytes]
    begins: list[float]
    samples: np.ndarray
    """The first channel, as decoded."""
    rate: int
    starts: float
    ends: float


def seconds(thing) -> Fraction:
    """Time of a packet or frame in the file."""
    return thing.pts * Fraction(thing.time_base.numerator, thing.time_base.denominator)


def first_frame_time(path) -> Fraction:
    with av.open(str(path)) as file:
        return seconds(next(file.decode(video=0)))


def sound_of(path) -> Sound:
    zero = first_frame_time(path)
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        packets = [(bytes(p), float(seconds(p) - zero)) for p in file.demux(stream) if p.size]
        codec = stream.codec_context.name
    raw, begins = map(list, zip(*packets, strict=True))
    with av.open(str(path)) as file:
        frames = list(file.decode(audio=0))
    # Where channels are not in rows of their own, they take turns.
    step = 1 if frames[0].format.is_planar else frames[0].layout.nb_channels
    samples = np.concatenate([frame.to_ndarray()[0, ::step] for frame in frames])
    rate, last = frames[0].sample_rate, frames[-1]
    ends = seconds(last) + Fraction(last.samples, rate) - zero
    starts = seconds(frames[0]) - zero
    return Sound(codec, raw, begins, samples, rate, float(starts), float(ends))


def main_hz(sound: Sound) -> float:
    power = np.abs(np.fft.rfft(sound.samples * np.hanning(len(sound.samples))))
    return power.argmax() * sound.rate / len(sound.samples)


def needs(codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"no {codec} here")


def write(path, source, num_frames=50, fps=25):
    with VideoWriter(path, fps, audio_from=source) as writer:
        for _ in range(num_frames):
            writer.write(FRAME)
    assert VideoFile(path).num_frames == num_frames
    assert VideoFile(path).fps == pytest.approx(fps, rel=1e-3)
    return path


def has_sound(path) -> bool:
    with av.open(str(path)) as file:
        return bool(file.streams.audio)


@pytest.mark.parametrize(
    ("name", "audio", "suffix"),
    [
        ("a.mp4", "aac", "mp4"),
        ("a.mp4", "aac", "mov"),
        ("a.mp4", "aac", "m4v"),
        ("a.mp4", "aac", "mkv"),
        ("a.mkv", "aac", "mp4"),
        ("a.mp4", "libmp3lame", "mp4"),
        ("a.mkv", "libmp3lame", "mov"),
        ("a.avi", "libmp3lame", "mp4"),
        ("a.mkv", "libopus", "mp4"),
        ("a.mkv", "flac", "mp4"),
        ("a.mov", "alac", "mp4"),
        ("a.mkv", "ac3", "m4v"),
        ("a.mkv", "eac3", "mp4"),
        ("a.mov", "pcm_s16le", "mov"),
        ("a.mkv", "pcm_s16le", "mkv"),
    ],
)
def test_packets_are_copied_if_the_container_accepts_them(tmp_path, name, audio, suffix):
    needs(audio)
    source = make_film(tmp_path / name, audio)
    ours, theirs = sound_of(write(tmp_path / f"out.{suffix}", source)), sound_of(source)
    assert ours.codec == theirs.codec
    kept = sum(begin < 2 for begin in theirs.begins)
    assert kept >= len(theirs.packets) - 2
    assert ours.packets == theirs.packets[:kept]
    # A tick of mkv is a millisecond.
    assert ours.begins == pytest.approx(theirs.begins[:kept], abs=2e-3)


def test_a_stream_without_headers_of_its_own_is_copied(tmp_path):
    """A transport stream repeats the AAC header in every packet; an mp4 has it once."""
    source = make_film(tmp_path / "a.ts")
    ours, theirs = sound_of(write(tmp_path / "out.mp4", source)), sound_of(source)
    assert len(ours.packets) == len(theirs.packets)
    assert all(a.endswith(b) for a, b in zip(theirs.packets, ours.packets, strict=True))
    assert ours.begins == pytest.approx(theirs.begins, abs=2e-3)


@pytest.mark.parametrize(
    ("name", "audio", "suffix", "options"),
    [
        ("a.avi", "pcm_s16le", "mp4", {}),
        ("a.mov", "pcm_s16le", "mp4", {}),
        ("a.mkv", "pcm_s16le", "m4v", {"rate": 8000, "layout": "mono"}),
        ("a.mkv", "pcm_s16le", "mp4", {"rate": 37800}),
        ("a.mkv", "pcm_s16le", "mp4", {"layout": "5.1"}),
        ("a.mkv", "pcm_s16le", "mp4", {"layout": "quad"}),
        ("a.mkv", "flac", "mov", {}),
        ("a.mkv", "libmp3lame", "m4v", {"rate": 44100}),
        ("a.avi", "adpcm_ms", "mkv", {}),
    ],
)
def test_other_codecs_become_aac(tmp_path, name, audio, suffix, options):
    needs(audio)
    source = make_film(tmp_path / name, audio, **options)
    out = write(tmp_path / f"out.{suffix}", source)
    ours = sound_of(out)
    assert ours.codec == "aac"
    assert main_hz(ours) == pytest.approx(440, abs=2)
    assert len(ours.samples) == pytest.approx(2 * ours.rate, abs=2100)
    if options.get("layout") != "quad":  # four channels on two are louder
        assert np.abs(ours.samples).mean() == pytest.approx(8000 / 32768 * 2 / np.pi, rel=0.1)
    assert ours.rate == (48000 if options.get("rate") == 37800 else options.get("rate", 48000))
    with av.open(str(out)) as file:
        layout = file.streams.audio[0].codec_context.layout.name
    assert layout == options.get("layout", "stereo").replace("quad", "stereo")


@pytest.mark.parametrize("audio", ["aac", "pcm_s16le"])
def test_sound_ends_with_the_video(tmp_path, audio):
    source = make_film(tmp_path / "a.mov", audio, sound_s=4)
    ours = sound_of(write(tmp_path / "out.mp4", source))
    assert 2 <= ours.ends < 2 + 1024 / 48000
    # And a video does not wait for sound that is short.
    source = make_film(tmp_path / "b.mov", audio, sound_s=1)
    assert sound_of(write(tmp_path / "out.mp4", source)).ends == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("audio", "suffix"), [("aac", "mp4"), ("aac", "mkv"), ("flac", "mov"), ("pcm_s16le", "mp4")]
)
@pytest.mark.parametrize(("sound_at_s", "picture_at_s"), [(0.6, 0), (0.2, 1), (0.4, 0.4)])
def test_sound_stays_in_sync_with_the_first_frame(
    tmp_path, audio, suffix, sound_at_s, picture_at_s
):
    times = dict(sound_at_s=sound_at_s, picture_at_s=picture_at_s)
    source = make_film(tmp_path / "a.mkv", audio, **times)
    ours, theirs = sound_of(write(tmp_path / f"out.{suffix}", source)), sound_of(source)
    late = sound_at_s - picture_at_s
    if ours.codec == theirs.codec:
        assert ours.begins == pytest.approx(theirs.begins[: len(ours.begins)], abs=2e-3)
    if late >= 0:
        loud = np.abs(ours.samples) > 0.05 * np.abs(ours.samples).max()
        # A tone begins where it is first heard; what an encoder puts before is silence.
        assert ours.starts + loud.argmax() / ours.rate == pytest.approx(late, abs=5e-3)
    else:
        assert ours.starts == pytest.approx(late, abs=0.03)
        assert ours.ends == pytest.approx(2 + late, abs=0.05)


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "pcm_s16le"), ("mp4", "aac")])
def test_a_pause_stays_a_pause(tmp_path, suffix, codec):
    source = make_film(tmp_path / "a.mkv", "pcm_s16le", lost=range(20, 60))
    ours = sound_of(write(tmp_path / f"out.{suffix}", source))
    assert ours.codec == codec
    assert ours.ends == pytest.approx(2, abs=0.05)
    assert max(b - a for a, b in pairwise(ours.begins)) > 39 * 1024 / 48000


def test_rounded_times_leave_no_gaps(tmp_path):
    """Mkv rounds packet times to milliseconds, which samples do not align with."""
    source = make_film(tmp_path / "a.mkv", "pcm_s16le", rate=44100)
    begins = sound_of(write(tmp_path / "out.mp4", source)).begins
    assert np.diff(begins) == pytest.approx(1024 / 44100, abs=1e-6)


def test_no_sound_adds_no_stream(tmp_path, recwarn):
    film = make_film(tmp_path / "film.mp4")
    silent = write(tmp_path / "silent.mp4", None)
    assert not has_sound(silent)
    assert not has_sound(write(tmp_path / "a.mp4", silent))
    assert not has_sound(write(tmp_path / "a.gif", film))
    assert not recwarn.list


def test_sound_that_begins_after_the_last_frame_is_left_out(tmp_path):
    source = make_film(tmp_path / "a.mkv", "eac3", sound_at_s=3)
    assert not has_sound(write(tmp_path / "out.mp4", source))


def test_sound_of_a_file_without_pictures_begins_with_them(tmp_path):
    out = write(tmp_path / "a.mkv", make_audio(tmp_path / "a.wav"), num_frames=5)
    assert sound_of(out).starts == 0
    assert sound_of(out).ends == pytest.approx(0.25, abs=2e-3)


def test_only_the_first_of_two_sounds_is_kept(tmp_path):
    first, second = make_film(tmp_path / "1.mp4"), make_film(tmp_path / "2.mp4", "ac3")
    with av.open(str(tmp_path / "both.mkv"), "w") as both:
        sources = [av.open(str(path)) for path in (first, first, second)]
        kinds = ("video", "audio", "audio")
        streams = [s.streams.best(kind) for s, kind in zip(sources, kinds, strict=True)]
        added = [both.add_stream_from_template(stream) for stream in streams]
        for stream, out in zip(streams, added, strict=True):
            for packet in stream.container.demux(stream):
                if packet.size:
                    packet.stream = out
                    both.mux(packet)
    out = write(tmp_path / "out.mp4", tmp_path / "both.mkv")
    with av.open(str(out)) as file:
        assert [s.codec_context.name for s in file.streams.audio] == ["aac"]
    assert sound_of(out).packets[:90] == sound_of(first).packets[:90]


@pytest.mark.parametrize(
    ("audio", "suffix", "damaged"),
    [
        ("eac3", "mp4", 30),
        ("ac3", "mov", 30),
        ("flac", "mov", 0),
        ("flac", "mov", 10),
        ("libmp3lame", "m4v", 30),
    ],
)
def test_damaged_sound_ends_there_with_one_warning(tmp_path, audio, suffix, damaged):
    """Dolby audio is copied into mp4 and only the muxer parses it; others are decoded."""
    needs(audio)
    source = make_film(tmp_path / "a.mkv", audio, damaged=(damaged,))
    with pytest.warns(UserWarning, match=r"no more sound from .*a\.mkv: .*Invalid") as warned:
        out = write(tmp_path / f"out.{suffix}", source)
    assert len(warned) == 1
    if damaged:
        whole = sound_of(make_film(tmp_path / "whole.mkv", audio))
        assert sound_of(out).ends == pytest.approx(whole.begins[damaged], abs=0.1)
    else:
        assert not has_sound(out)


@pytest.mark.parametrize("reason", ["the file is missing", "cannot be decoded"])
def test_an_unreadable_audio_file_leaves_a_silent_video(tmp_path, reason):
    source = tmp_path / "a.mp4"
    if "decoded" in reason:
        source.write_bytes(b"no film at all")
    with pytest.warns(UserWarning, match=rf"a\.mp4: {reason}") as warned:
        assert not has_sound(write(tmp_path / "out.mp4", source))
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("audio", "suffix", "fps"), [("aac", "mp4", 25), ("aac", "mkv", 2), ("pcm_s16le", "mp4", 2)]
)
def test_audio_is_interleaved_with_video(tmp_path, audio, suffix, fps):
    """x264 delays frames: at 2 fps, sound that did not wait would be far ahead."""
    source = make_film(tmp_path / "a.mkv", audio, num_frames=80, fps=fps, rate=8000)
    out = write(tmp_path / f"out.{suffix}", source, num_frames=80, fps=fps)
    with av.open(str(out)) as file:
        packets = sorted((p.pos, p.stream.type, seconds(p)) for p in file.demux() if p.size)
    reached, apart = {"video": 0.0, "audio": 0.0}, 0.0
    for _, kind, time in packets:
        reached[kind] = float(time)
        apart = max(apart, abs(reached["video"] - reached["audio"]))
    # A few frames that are not in the order they are shown, a packet of sound, a chunk of mkv.
    assert apart <= 5 / fps + 2 * 1024 / 8000


@pytest.mark.parametrize("audio", ["aac", "pcm_s16le"])
def test_audio_is_read_while_video_is_written(tmp_path, audio, monkeypatch):
    name = "copied_packets" if audio == "aac" else "encoded_packets"
    packets, read = getattr(audio_track, name), []

    def counted(*args):
        for packet in packets(*args):
            read.append(seconds(packet))
            yield packet

    monkeypatch.setattr(audio_track, name, counted)
    source = make_film(tmp_path / "a.mov", audio, num_frames=200)
    with VideoWriter(tmp_path / "out.mp4", 25, audio_from=source) as writer:
        for i in range(200):
            writer.write(FRAME)
            # One packet waits for its picture, and the encoder holds less than 80 of these.
            assert (i - 80) / 25 < read[-1] < (i + 2) / 25
        early = len(read)
    assert 0.5 * len(read) < early < len(read)


def test_a_film_can_be_written_over_itself(tmp_path):
    source = make_film(tmp_path / "a.mp4")
    before = sound_of(source).packets
    assert sound_of(write(source, source)).packets == before

"""Files through a tokenizer: in chunks as in one piece, at any size and length."""

import errno
import threading
from dataclasses import replace
from itertools import count

import av
import pytest
import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.convert.inflate import enlarged
from magvit2_pytorch.functional import pad_space
from magvit2_pytorch.media.frames import to_float, to_uint8
from magvit2_pytorch.media.images import read_image, write_image
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.media.video_writer import VideoWriter, write_video
from magvit2_pytorch.metrics.quality import psnr
from magvit2_pytorch.pipelines.files import (
    decode_file,
    decoded_frames,
    reconstruct_file,
    tokenize_file,
)
from magvit2_pytorch.pipelines.fingerprint import TokenizerId, TokenizerMismatch
from magvit2_pytorch.pipelines.inference import Inference, reconstruct_clip
from tests.conftest import DISCRETE
from tests.data.clip_files import make_film
from tests.evaluation.clips import clip, exact, mean_difference

# x264 does not give the same bytes twice on pictures this small unless 8 divides their width.
WIDTH = 24

MAIN = threading.main_thread()
LONG_S = 20
"""What is waited for comes at once, or not at all."""


def read_all(path, channels=3):
    file = VideoFile(path, channels)
    return file.read(range(file.num_frames))


def read_sound(path):
    """The packets of the first audio stream."""
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(audio=0) if packet.size]


def after_codec(path, frames, fps=12):
    """The frames as a video codec leaves them: ours met the same one."""
    write_video(path, frames, fps)
    return read_all(path)


def assert_nearly_equal(ours, theirs):
    """Video codecs are not to be trusted with the last bit."""
    assert ours.shape == theirs.shape
    assert mean_difference(ours, theirs) < 1


def whole(path, tokenizer):
    """All frames at once, as the library's own calls want them."""
    frames = read_all(path, tokenizer.config.channels)
    return frames, pad_space(to_float(frames)[None].double(), tokenizer.space_factor)


@pytest.mark.parametrize("quantizer", DISCRETE)
def test_codes_in_chunks_are_those_of_the_whole_clip(tmp_path, quantizer):
    tokenizer = exact(quantizer)
    path = clip(tmp_path, num_frames=7)
    codes = tokenizer.tokenize(whole(path, tokenizer)[1])[0]
    for chunk_frames in range(1, 10) if quantizer == "lfq" else (1, 4):
        ours, header = tokenize_file(
            tokenizer, path, inference=Inference(chunk_frames=chunk_frames)
        )
        assert torch.equal(ours, codes)
        assert header.shape == tuple(codes.shape)


@pytest.mark.parametrize(
    ("num_frames", "size"),
    [(1, (18, 22)), (2, (16, 16)), (2, (17, 3)), (3, (18, 22)), (6, (16, 16)), (6, (17, 3))],
)
def test_any_size_and_length_comes_back_as_it_was(tmp_path, num_frames, size):
    tokenizer = exact()
    path = clip(tmp_path, num_frames, *size, codec="mpeg4", name="clip.avi")
    codes, header = tokenize_file(tokenizer, path)
    real, video = whole(path, tokenizer)
    assert (header.num_frames, header.height, header.width) == (num_frames, *size)
    assert torch.equal(codes, tokenizer.tokenize(video)[0])
    recon = tokenizer.decode_from_code_indices(codes[None])
    expected = to_uint8(recon[0, :, :num_frames, : size[0], : size[1]])
    for chunk_frames in (1, 4, 16):
        runs = list(decoded_frames(tokenizer, codes, header, Inference(chunk_frames=chunk_frames)))
        assert max(map(len, runs)) <= 1 + max(chunk_frames, tokenizer.time_factor)
        assert torch.equal(torch.cat(runs), expected)
    assert torch.cat(runs).shape == real.shape


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".gif"])
def test_a_decoded_file_has_the_frames_size_and_rate(tmp_path, suffix):
    tokenizer = exact()
    path = clip(tmp_path, num_frames=6, width=WIDTH, fps=12)
    codes, header = tokenize_file(tokenizer, path)
    assert header.fps == pytest.approx(12, rel=1e-3)
    out = tmp_path / f"out{suffix}"
    decode_file(tokenizer, codes, header, out)
    assert VideoFile(out).fps == pytest.approx(12, rel=0.01)
    frames = torch.cat(list(decoded_frames(tokenizer, codes, header)))
    assert_nearly_equal(read_all(out), after_codec(tmp_path / f"expected{suffix}", frames))


def test_odd_sides_are_even_in_video_files_only_by_a_repeated_row(tmp_path):
    tokenizer = exact()
    path = clip(tmp_path, 3, 17, 19, codec="mpeg4", name="clip.avi")
    codes, header = tokenize_file(tokenizer, path)
    decode_file(tokenizer, codes, header, tmp_path / "out.mp4")
    file = VideoFile(tmp_path / "out.mp4")
    assert (header.height, header.width) == (17, 19)
    assert (file.height, file.width) == (18, 20)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_an_image_is_one_frame_and_becomes_an_image(tmp_path, suffix):
    tokenizer = exact()
    path = tmp_path / f"picture{suffix}"
    picture = next(iter(VideoFile(clip(tmp_path, 1, 15, 21, codec="mpeg4", name="c.avi"))))
    write_image(path, picture)
    codes, header = tokenize_file(tokenizer, path)
    assert (header.kind, header.num_frames, header.fps) == ("image", 1, None)
    assert codes.shape == (1, 4, 6)
    decode_file(tokenizer, codes, header, tmp_path / "out.png")
    video = pad_space(to_float(read_image(path))[None, :, None].double(), 4)
    recon = tokenizer.decode_from_code_indices(tokenizer.tokenize(video))
    assert torch.equal(read_image(tmp_path / "out.png"), to_uint8(recon[0])[0, :15, :21])
    with pytest.raises(ValueError, match=r"\.png"):
        decode_file(tokenizer, codes, header, tmp_path / "out.mp4")


def test_a_gif_is_a_video(tmp_path):
    path = clip(tmp_path, 4, 16, 16, name="clip.gif", codec="gif")
    assert tokenize_file(exact(), path)[1].kind == "video"


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_than_three(tmp_path, channels):
    tokenizer = exact(channels=channels)
    path = clip(tmp_path, 3)
    codes, header = tokenize_file(tokenizer, path)
    assert torch.equal(codes, tokenizer.tokenize(whole(path, tokenizer)[1])[0])
    decode_file(tokenizer, codes, header, tmp_path / "out.mp4")
    reconstruct_file(tokenizer, path, tmp_path / "pair.mp4", side_by_side=True)


def test_size_is_the_short_side_and_keeps_proportions(tmp_path):
    tokenizer = exact()
    path = clip(tmp_path, 3, 24, 36)
    _, header = tokenize_file(tokenizer, path, size=13)
    assert (header.height, header.width) == (13, 20)
    assert header.shape == (2, 4, 5)
    image = tmp_path / "tall.png"
    write_image(image, torch.zeros(30, 20, 3, dtype=torch.uint8))
    _, header = tokenize_file(tokenizer, image, size=10)
    assert (header.height, header.width) == (15, 10)
    with pytest.raises(ValueError, match="size is 0"):
        tokenize_file(tokenizer, path, size=0)
    with pytest.raises(ValueError, match="chunk_frames is 0"):
        tokenize_file(tokenizer, path, inference=Inference(chunk_frames=0))


@pytest.mark.parametrize("quantizer", ["lfq", "continuous", "continuous-kl"])
def test_reconstructing_is_coding_and_decoding(tmp_path, quantizer):
    tokenizer = exact(quantizer)
    path = clip(tmp_path, num_frames=6, width=WIDTH, fps=12)
    real, video = whole(path, tokenizer)
    with torch.no_grad():
        recon = tokenizer(video)[:, :, :, :18, :WIDTH]
    for chunk_frames in (1, 4, 100):
        result = reconstruct_file(
            tokenizer, path, tmp_path / "o.mkv", inference=Inference(chunk_frames=chunk_frames)
        )
        expected = psnr(recon, to_float(real)[None].double())
        assert result.psnr_db == pytest.approx(float(expected), abs=1e-4)
        assert (result.num_frames, result.height, result.width) == (6, 18, WIDTH)
    expected = after_codec(tmp_path / "expected.mkv", to_uint8(recon[0]))
    assert_nearly_equal(read_all(tmp_path / "o.mkv"), expected)


def test_frames_that_wait_for_later_codes_come_in_the_end(tmp_path):
    tokenizer = exact(layers=("compress_space", "vidtok_compress_time_linear", "compress_space"))
    path = clip(tmp_path, num_frames=7, width=WIDTH, fps=12)
    real, video = whole(path, tokenizer)
    with torch.no_grad():
        recon = tokenizer(video)[:, :, :, :18, :WIDTH]
    codes, header = tokenize_file(tokenizer, path)
    right = psnr(recon, to_float(real)[None].double())
    for chunk_frames in (1, 4, 100):
        inference = Inference(chunk_frames=chunk_frames)
        frames = torch.cat(list(decoded_frames(tokenizer, codes, header, inference)))
        assert torch.equal(frames, to_uint8(recon[0]))
        result = reconstruct_file(tokenizer, path, tmp_path / "o.mkv", inference=inference)
        assert result.psnr_db == pytest.approx(float(right), abs=1e-4)
        assert result.num_frames == 7
        found, found_codes = reconstruct_clip(tokenizer, video, inference)
        torch.testing.assert_close(found, tokenizer(video), atol=1e-9, rtol=0)
        assert torch.equal(found_codes[0], codes)
    expected = after_codec(tmp_path / "expected.mkv", to_uint8(recon[0]))
    assert_nearly_equal(read_all(tmp_path / "o.mkv"), expected)


def test_side_by_side_has_the_original_on_the_left(tmp_path):
    tokenizer = exact()
    path = clip(tmp_path, num_frames=3)
    reconstruct_file(tokenizer, path, tmp_path / "pair.mp4", side_by_side=True)
    pair = VideoFile(tmp_path / "pair.mp4")
    assert (pair.height, pair.width) == (18, 44)
    real, _ = whole(path, tokenizer)
    left, right = pair.read(range(3)).split(22, dim=2)
    # Colours lose half their resolution, and these change from one pixel to the next.
    assert mean_difference(left, real) < 0.5 * mean_difference(right, real)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_reconstruction_keeps_the_sound(tmp_path, side_by_side):
    path, out = make_film(tmp_path / "film.mkv", num_frames=12), tmp_path / "out.mp4"
    reconstruct_file(
        exact(), path, out, side_by_side=side_by_side, inference=Inference(chunk_frames=4)
    )
    assert read_sound(out) == read_sound(path)
    assert VideoFile(out).num_frames == 12
    reconstruct_file(exact(), path, tmp_path / "out.gif")
    assert VideoFile(tmp_path / "out.gif").num_frames == 12


@pytest.mark.parametrize(
    ("source", "size", "true", "fps"),
    [
        ((18, 22), None, (18, 22), 12),
        ((17, 31), None, (17, 31), 30),
        ((31, 17), 11, (20, 11), 12),
        ((9, 60), 8, (8, 53), 30),
        ((20, 20), 27, (27, 27), 12),
    ],
)
def test_a_reconstruction_has_the_true_size_and_rate(tmp_path, source, size, true, fps):
    path = clip(tmp_path, 5, *source, codec="mpeg4", name="clip.avi", fps=fps)
    result = reconstruct_file(exact(), path, tmp_path / "out.mp4", size=size)
    assert (result.height, result.width) == true
    file = VideoFile(tmp_path / "out.mp4")
    # A video codec wants even sides: one row or column more, and never one less.
    assert (file.height, file.width) == (true[0] + true[0] % 2, true[1] + true[1] % 2)
    assert (file.num_frames, file.fps) == (5, fps)
    reconstruct_file(exact(), path, tmp_path / "out.gif", size=size)
    assert read_all(tmp_path / "out.gif").shape[1:3] == true


def test_reconstructed_levels_are_rounded(tmp_path):
    """Truncated, a picture would be half a level darker all over."""
    tokenizer = exact()
    tokenizer.decoder.register_forward_hook(lambda _, __, out: (out[0] * 0 + 0.0038, out[1]))
    write_image(tmp_path / "a.png", torch.zeros(8, 8, 3, dtype=torch.uint8))
    reconstruct_file(tokenizer, tmp_path / "a.png", tmp_path / "b.png")
    # (1 + 0.0038) * 127.5 is 127.98.
    assert (read_image(tmp_path / "b.png") == 128).all()


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path):
    tokenizer = exact()
    path = clip(tmp_path, num_frames=30)
    seen = []
    tokenizer.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[2]))
    codes, header = tokenize_file(tokenizer, path, inference=Inference(chunk_frames=5))
    # The largest multiple of 2 up to 5, and the last frame repeated once.
    assert seen == [5, 4, 4, 4, 4, 4, 4, 2]
    heard = []
    tokenizer.decoder.register_forward_pre_hook(lambda _, args: heard.append(args[0].shape[2]))
    assert (
        sum(map(len, decoded_frames(tokenizer, codes, header, Inference(chunk_frames=5))))
        == header.num_frames
        == 30
    )
    assert heard == [3, 2, 2, 2, 2, 2, 2, 1]


def test_progress_is_told_up_to_the_last_frame(tmp_path):
    tokenizer, told = exact(), []
    path = clip(tmp_path, num_frames=6)
    tell = lambda done, total: told.append((done, total))  # noqa: E731
    codes, header = tokenize_file(
        tokenizer, path, inference=Inference(chunk_frames=2), on_frames=tell
    )
    assert told == [(0, 6), (3, 6), (5, 6), (6, 6)]
    decode_file(
        tokenizer,
        codes,
        header,
        tmp_path / "o.mp4",
        inference=Inference(chunk_frames=2),
        on_frames=tell,
    )
    reconstruct_file(
        tokenizer, path, tmp_path / "o.mp4", inference=Inference(chunk_frames=2), on_frames=tell
    )
    assert told == [(0, 6), (3, 6), (5, 6), (6, 6)] * 3


@pytest.mark.parametrize("promised", [1, 4, 7, 40])
def test_more_or_fewer_frames_than_the_file_promises(tmp_path, monkeypatch, promised):
    tokenizer, told = exact(quantizer="lfq-several"), []
    path = clip(tmp_path, num_frames=7, width=WIDTH)
    real, video = whole(path, tokenizer)
    monkeypatch.setattr(VideoFile, "num_frames", promised)
    tell = lambda done, total: told.append((done, total))  # noqa: E731
    for chunk_frames in (100, 2):
        told.clear()
        codes, header = tokenize_file(
            tokenizer, path, inference=Inference(chunk_frames=chunk_frames), on_frames=tell
        )
        assert torch.equal(codes, tokenizer.tokenize(video)[0])
        assert (header.num_frames, header.shape) == (7, tuple(codes.shape))
    assert told == [(done, promised) for done in (0, 3, 5, 7)]
    result = reconstruct_file(
        tokenizer, path, tmp_path / "o.mp4", inference=Inference(chunk_frames=2)
    )
    assert result.num_frames == 7
    monkeypatch.undo()
    assert len(read_all(tmp_path / "o.mp4")) == len(real)


def test_bf16_is_close_and_leaves_the_tokenizer_as_it_was(tmp_path):
    tokenizer = exact().float().train()
    path = clip(tmp_path)
    codes, header = tokenize_file(tokenizer, path)
    low, _ = tokenize_file(tokenizer, path, inference=Inference(precision="bf16"))
    assert (low == codes).float().mean() > 0.5
    full = torch.cat(list(decoded_frames(tokenizer, codes, header)))
    low = torch.cat(
        list(decoded_frames(tokenizer, codes, header, inference=Inference(precision="bf16")))
    )
    assert mean_difference(low, full) < 2
    assert tokenizer.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in tokenizer.parameters())


def test_what_files_cannot_give_or_hold_is_refused(tmp_path):
    path = clip(tmp_path, num_frames=2)
    conditional = exact(layers=("cond_residual",))
    for call in (
        lambda: tokenize_file(conditional, path),
        lambda: reconstruct_file(conditional, path, tmp_path / "o.mp4"),
    ):
        with pytest.raises(ValueError, match="conditional"):
            call()
    with pytest.raises(ValueError, match="continuous"):
        tokenize_file(exact("continuous"), path)
    with pytest.raises(ValueError, match=r"\.mp4"):
        reconstruct_file(exact(), path, tmp_path / "o.png")
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mkv"]


def test_another_tokenizers_codes_are_refused_by_name_unless_forced(tmp_path):
    ours, theirs = exact(), exact()
    codes, video = tokenize_file(
        ours, clip(tmp_path), tokenizer_id=TokenizerId.of(ours, "run/ours")
    )
    assert video.header.tokenizer == "run/ours"
    out, named = tmp_path / "out.mp4", TokenizerId.of(theirs, "run/theirs")
    with pytest.raises(TokenizerMismatch, match=r"run/ours.*run/theirs") as error:
        decode_file(theirs, codes, video, out, tokenizer_id=named)
    assert video.header.fingerprint[:12] in str(error.value)
    assert named.fingerprint[:12] in str(error.value)
    assert not out.exists()
    decode_file(theirs, codes, video, out, tokenizer_id=named, force=True)
    with pytest.raises(ValueError, match=r"shape \(5, 5, 6\)"):
        decode_file(ours, torch.cat((codes, codes[:1])), video, out, force=True)
    other = exact("fsq")
    with pytest.raises(TokenizerMismatch, match="codebook_size 64, not 200"):
        decode_file(other, codes, video, out, force=True)
    for change in (dict(num_frames=8), dict(height=23), dict(width=25)):
        with pytest.raises(ValueError, match="do not fit"):
            decode_file(ours, codes, replace(video, **change), out, force=True)
    moved = replace(video, header=replace(video.header, tokenizer="moved"))
    named = TokenizerId("x", video.header.fingerprint)
    decode_file(ours, codes, moved, out, tokenizer_id=named)


def test_an_enlarged_tokenizer_decodes_the_codes_of_the_small_one(tmp_path):
    """At its size, cut to that of the file."""
    torch.manual_seed(0)
    small = VideoTokenizer.from_preset("tiny").eval()
    codes, video = tokenize_file(small, clip(tmp_path, num_frames=5))
    large = enlarged(small, 2, codes_of=video.header.fingerprint).eval()
    out = tmp_path / "out.mkv"
    size = decode_file(large, codes, video, out)
    file = VideoFile(out)
    assert size == (file.height, file.width)
    assert (file.num_frames, file.height, file.width) == (5, 2 * video.height, 2 * video.width)
    with pytest.raises(TokenizerMismatch):
        decode_file(enlarged(small, 2), codes, video, out)


@pytest.fixture
def breaking_off(monkeypatch):
    """Every video file breaks at its sixth frame; gives what was seen of the threads."""
    frames, threads = VideoFile.frames, []

    def broken(self, size=None):
        threads.append(threading.current_thread())
        for number, frame in enumerate(frames(self, size)):
            if number == 5:
                raise ValueError("broken")
            yield frame

    monkeypatch.setattr(VideoFile, "frames", broken)
    return threads


@pytest.mark.parametrize("chunk_frames", [2, 100])
def test_a_file_that_breaks_off_leaves_no_output(tmp_path, breaking_off, chunk_frames):
    path, out = clip(tmp_path, num_frames=8), tmp_path / "out.mp4"
    out.write_bytes(b"an older file")
    for call in (
        lambda: tokenize_file(exact(), path, inference=Inference(chunk_frames=chunk_frames)),
        lambda: reconstruct_file(
            exact(), path, out, inference=Inference(chunk_frames=chunk_frames)
        ),
    ):
        with pytest.raises(ValueError, match="broken"):
            call()
    assert out.read_bytes() == b"an older file"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mkv", "out.mp4"]
    assert not any(thread.is_alive() for thread in set(breaking_off) - {MAIN})


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 3])
def test_computing_that_breaks_off_leaves_no_output(tmp_path, error, at):
    tokenizer, calls = exact(), []
    path, out = clip(tmp_path, num_frames=12), tmp_path / "out.mp4"
    codes, header = tokenize_file(tokenizer, path)
    before = set(threading.enumerate())

    def fail(*_):
        calls.append(threading.current_thread())
        if len(calls) == at:
            raise error("ours")

    tokenizer.decoder.register_forward_pre_hook(fail)
    for call in (
        lambda: decode_file(tokenizer, codes, header, out, inference=Inference(chunk_frames=2)),
        lambda: reconstruct_file(tokenizer, path, out, inference=Inference(chunk_frames=2)),
    ):
        calls.clear()
        with pytest.raises(error, match="ours"):
            call()
        # In the caller's thread, which has the caller's modes and devices.
        assert set(calls) == {MAIN}
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mkv"]
    assert set(threading.enumerate()) == before


def test_a_disk_that_is_full_is_said_and_leaves_no_output(tmp_path, monkeypatch):
    def full(self, frame):
        raise OSError(errno.ENOSPC, "no space left")

    path = clip(tmp_path, num_frames=12)
    monkeypatch.setattr(VideoWriter, "write", full)
    with pytest.raises(OSError, match="no space left"):
        reconstruct_file(exact(), path, tmp_path / "out.mp4", inference=Inference(chunk_frames=2))
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mkv"]


def test_reading_computing_and_writing_go_on_at_the_same_time(tmp_path, monkeypatch):
    """Each waits for another to be further than it could be, were there one thread."""
    tokenizer, path = exact(), clip(tmp_path, num_frames=13)
    read = [threading.Event() for _ in range(14)]
    begun = [threading.Event() for _ in range(6)]
    frames, write = VideoFile.frames, VideoWriter.write
    num_written, num_begun = count(), count()

    def noted_frames(self, size=None):
        for number, frame in enumerate(frames(self, size)):
            read[number].set()
            yield frame

    def waiting_write(self, frame):
        # Frames 3 and 4 are the second run: they wait for the third to be computed.
        run = (next(num_written) + 1) // 2
        assert begun[min(run, 5)].wait(LONG_S)
        write(self, frame)

    def waiting_encode(*_):
        run = next(num_begun)
        begun[run].set()
        # The first frame of the run after this.
        assert read[min(3 + 2 * run, 12)].wait(LONG_S)

    monkeypatch.setattr(VideoFile, "frames", noted_frames)
    monkeypatch.setattr(VideoWriter, "write", waiting_write)
    tokenizer.encoder.register_forward_pre_hook(waiting_encode)
    assert (
        reconstruct_file(
            tokenizer, path, tmp_path / "o.mp4", inference=Inference(chunk_frames=2)
        ).num_frames
        == 13
    )
    assert len(read_all(tmp_path / "o.mp4")) == 13


def test_a_video_file_is_opened_read_and_closed_in_one_thread(tmp_path, monkeypatch):
    path, opened = clip(tmp_path, num_frames=20), []
    frames = VideoFile.frames

    def noted(self, size=None):
        here = [threading.get_ident()]
        opened.append(here)
        try:
            for frame in frames(self, size):
                here.append(threading.get_ident())
                yield frame
        finally:
            here.append(threading.get_ident())

    monkeypatch.setattr(VideoFile, "frames", noted)
    tokenizer = exact()
    tokenize_file(tokenizer, path, inference=Inference(chunk_frames=2))
    tokenizer.encoder.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tokenize_file(tokenizer, path, inference=Inference(chunk_frames=2))
    assert all(len(set(here)) == 1 for here in opened)
    assert len(opened) >= 2


def test_tiles_change_no_code_and_no_frame(tmp_path):
    tokenizer = exact(layers=("residual", "compress_space", "compress_time", "compress_space"))
    video = clip(tmp_path, num_frames=3)
    codes, header = tokenize_file(tokenizer, video)
    tiled, _ = tokenize_file(tokenizer, video, inference=Inference(tile_size=8))
    assert torch.equal(tiled, codes)
    whole = torch.cat(list(decoded_frames(tokenizer, codes, header)))
    cut = torch.cat(
        list(decoded_frames(tokenizer, codes, header, inference=Inference(tile_size=8)))
    )
    assert (whole.int() - cut.int()).abs().max() <= 1  # a level, where rounding has a tie
    quality = [
        reconstruct_file(
            tokenizer, video, tmp_path / "out.mp4", inference=Inference(tile_size=size)
        ).psnr_db
        for size in (None, 8, "auto")
    ]
    assert quality == pytest.approx([quality[0]] * 3, abs=1e-4)

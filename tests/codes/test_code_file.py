"""Code files: round trips, and refusal of foreign and damaged files."""

import json
import zlib
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from magvit2_pytorch.codes.code_file import (
    CodeFile,
    ShardName,
    ShardWriter,
    metadata_checksum,
    read_codes,
    write_codes,
)
from magvit2_pytorch.codes.code_header import CodedVideo, CodeHeader, to_json
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.version import __version__

HEADER = CodeHeader(
    tokenizer="run/tokenizer",
    fingerprint="0" * 64,
    digit_levels=(2,) * 10,
    num_codebooks=1,
    time_factor=2,
    space_factor=4,
)
VIDEO = CodedVideo(
    header=HEADER,
    source="clip.mp4",
    kind="video",
    num_frames=6,
    height=13,
    width=16,
    fps=29.97,
    shape=(4, 4, 4),
    state="1234 B, 5678 ns",
)


def coded_video(digit_levels=HEADER.digit_levels, num_codebooks=1, shape=VIDEO.shape, **changes):
    """`VIDEO` with changes; `shape` is without the axis of codebooks."""
    header = replace(HEADER, digit_levels=digit_levels, num_codebooks=num_codebooks)
    shape = shape if num_codebooks == 1 else (*shape, num_codebooks)
    return replace(VIDEO, **dict(header=header, shape=shape, **changes))


def codes_for(video):
    codes = torch.randint(video.header.codebook_size, video.shape)
    codes.view(-1)[0] = 0
    codes.view(-1)[-1] = video.header.codebook_size - 1
    return codes


@pytest.mark.parametrize("num_codebooks", [1, 3])
@pytest.mark.parametrize(
    ("codebook_size", "stored"),
    [(2, "uint16"), (2**16, "uint16"), (2**16 + 1, "int32"), (2**31, "int32"), (2**40, "int64")],
)
def test_round_trip_in_the_smallest_integers(tmp_path, num_codebooks, codebook_size, stored):
    video = coded_video((codebook_size,), num_codebooks)
    codes = codes_for(video)
    path = tmp_path / "new" / "clip.codes.safetensors"
    write_codes(path, codes, video)
    again, video_again = read_codes(path)
    assert again.dtype == torch.int64
    assert torch.equal(again, codes)
    assert asdict(video_again) == asdict(video) == asdict(CodeFile(path).videos[0])
    assert video_again.header.library_version == __version__
    (tensor,) = load_file(path).values()
    assert tensor.dtype == stored
    assert np.array_equal(tensor, codes.numpy())


@pytest.mark.parametrize(
    ("shape", "num_codebooks"),
    [((77,), 1), ((77,), 2), ((4, 4, 4), 2), ((2, 3, 4, 5, 6), 1), ((1,), 1), ((1,), 3)],
)
@pytest.mark.parametrize("levels", [(7, 7, 7, 5, 5), (2,) * 36, (1024,)])
def test_codes_of_any_shape_come_back(tmp_path, shape, num_codebooks, levels):
    """Sequences of 1-D tokenizers, residual levels, and axes that nobody has thought of."""
    video = coded_video(levels, num_codebooks, shape)
    codes = codes_for(video)
    path = tmp_path / "x.codes.safetensors"
    write_codes(path, codes, video)
    again, video_again = read_codes(path)
    assert torch.equal(again, codes)
    assert video_again == video
    assert video_again.header.digit_levels == levels
    stop = (len(codes) + 1) // 2
    assert torch.equal(CodeFile(path).read(0, 0, stop), codes[:stop])


def test_an_image_has_no_frame_rate(tmp_path):
    image = replace(VIDEO, kind="image", num_frames=1, fps=None, shape=(1, 4, 4))
    write_codes(tmp_path / "x", codes_for(image), image)
    assert read_codes(tmp_path / "x")[1] == image
    with pytest.raises(ValueError, match="fps"):
        replace(image, fps=25.0)
    with pytest.raises(ValueError, match="fps"):
        replace(VIDEO, fps=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_frames=0), "num_frames is 0"),
        (dict(height="wide"), "height is 'wide'"),
        (dict(fps="fast"), "fps is 'fast'"),
        (dict(source=3), "source is 3"),
        (dict(kind="film"), "kind is 'film'"),
        (dict(shape=()), r"shape is \(\)"),
        (dict(shape=(4, 0, 4)), r"shape is \(4, 0, 4\)"),
        (dict(shape=[4, 4]), r"shape is \[4, 4\]"),
        (dict(state=3), "state is 3"),
        (dict(kind="image", fps=None), "num_frames is 6"),
        (dict(header=replace(HEADER, num_codebooks=3)), "3 codebooks on their last axis"),
        (dict(header=replace(HEADER, num_codebooks=4), shape=(4,)), "4 codebooks on"),
    ],
)
def test_metadata_that_contradict_themselves_are_refused(change, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        replace(VIDEO, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(digit_levels=()), "digit_levels is"),
        (dict(digit_levels=(8, 1)), "digit_levels is"),
        (dict(digit_levels=(2,) * 64), "63 bits"),
        (dict(num_codebooks=0), "num_codebooks is 0"),
        (dict(space_factor=None), "space_factor is None"),
        (dict(size=0), "size is 0"),
        (dict(precision="fp8"), "precision is 'fp8'"),
        (dict(fingerprint=5), "fingerprint is 5"),
    ],
)
def test_impossible_headers_are_refused(change, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        replace(HEADER, **change)


def test_headers_are_equal_if_their_codes_are_comparable():
    assert replace(HEADER, tokenizer="moved", library_version="0") == HEADER
    for change in (dict(fingerprint="1"), dict(size=8), dict(precision="bf16")):
        assert replace(HEADER, **change) != HEADER


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((4, 4, 4), 1024), "1024"),
        (torch.full((4, 4, 4), -1), "-1"),
        (torch.zeros(4, 4, 5, dtype=torch.int64), r"\(4, 4, 5\)"),
        (torch.zeros(4, 4, 4, 1, dtype=torch.int64), r"\(4, 4, 4, 1\)"),
    ],
)
def test_codes_that_do_not_match_the_metadata_are_refused(tmp_path, codes, message):
    with pytest.raises(ValueError, match=message):
        write_codes(tmp_path / "x", codes, VIDEO)
    assert not list(tmp_path.iterdir())


def test_an_older_file_stays_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "clip.codes.safetensors"
    write_codes(path, codes_for(VIDEO), VIDEO)
    before = path.read_bytes()

    def full_disk(tensors, part, metadata):
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("magvit2_pytorch.codes.code_file.save_file", full_disk)
    with pytest.raises(OSError, match="space"):
        write_codes(path, codes_for(VIDEO), VIDEO)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def rewritten(path, codes=None, **changes):
    """Writes a file whose metadata, in spite of the changes, have the right checksum."""
    write_codes(path, torch.zeros(VIDEO.shape, dtype=torch.int64), VIDEO)
    with safe_open(path, "np") as file:
        metadata = {**file.metadata(), **changes}
    metadata = {name: text for name, text in metadata.items() if text is not None}
    codes = np.zeros(VIDEO.shape, np.uint16) if codes is None else codes
    save_file({"000000": codes}, path, {**metadata, "checksum": metadata_checksum(metadata)})


def changed(metadata, **changes):
    """JSON with some of its values changed, or without those that are "gone"."""
    values = json.loads(to_json(metadata, crc="0")) | changes
    return json.dumps({name: value for name, value in values.items() if value != "gone"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(format="someone's"), "not a code file"),
        (dict(version="2"), "version 2.*upgrade"),
        (dict(version="new"), "damaged"),
        (dict(header="{"), "damaged"),
        (dict(header="[]"), "damaged"),
        (dict(header=None), "damaged"),
        (dict(header=changed(HEADER)), "crc"),
        (dict(header=changed(HEADER, crc="gone", num_codebooks=[])), "num_codebooks"),
        ({"000000": "{"}, "damaged"),
        ({"000000": "[]"}, "damaged"),
        ({"000000": changed(VIDEO, speed=3)}, "speed"),
        ({"000000": changed(VIDEO, width="gone")}, "width"),
        ({"000000": changed(VIDEO, width="wide")}, "width is 'wide'"),
        ({"000000": changed(VIDEO, shape=[4, 4, 5])}, "shape"),
        ({"000000": changed(VIDEO, crc="gone")}, "crc"),
        ({"000000": None}, "missing"),
        ({"000001": changed(VIDEO)}, "unknown"),
        (dict(more="{}"), "unknown"),
        (dict(codes=np.full((4, 4, 4), 5000, np.uint16)), "clip.mp4 have changed"),
        (dict(codes=np.zeros((4, 4), np.uint16)), "shape"),
        (dict(codes=np.zeros((4, 4, 4), np.float32)), "type F32"),
        (dict(codes=np.zeros((4, 4, 4), np.int16)), "type I16"),
    ],
)
def test_foreign_newer_and_damaged_files_are_refused(
    tmp_path, changes, message, without_type_checks
):
    path = tmp_path / "clip.codes.safetensors"
    rewritten(path)
    read_codes(path)
    rewritten(path, **changes)
    with pytest.raises(UnusableMedia, match=message) as error:
        read_codes(path)
    assert error.value.path == str(path)
    # What is wrong with the codes is seen when they are read.
    if "codes" not in changes and message != "shape":
        with pytest.raises(UnusableMedia, match=message):
            CodeFile(path)


def test_codes_outside_the_codebook_are_refused_whatever_the_checksum_says(tmp_path):
    path = tmp_path / "clip.codes.safetensors"
    codes = np.full(VIDEO.shape, 5000, np.uint16)
    rewritten(path, codes, **{"000000": changed(VIDEO, crc=f"{zlib.crc32(codes):08x}")})
    with pytest.raises(UnusableMedia, match="5000"):
        read_codes(path)


def test_a_file_of_several_videos_is_not_read_as_one(tmp_path):
    writer = ShardWriter(tmp_path, ShardName(0, 0, 0), 10**9)
    for _ in range(2):
        writer.add(codes_for(VIDEO), VIDEO)
    with pytest.raises(UnusableMedia, match="holds 2 videos"):
        read_codes(writer.flush())


def test_files_that_are_not_safetensors_are_refused(tmp_path):
    path = tmp_path / "clip.codes.safetensors"
    with pytest.raises(UnusableMedia, match="missing"):
        read_codes(path)
    for content, message in ((b"", "empty"), (b"hello, this is text", "damaged or foreign")):
        path.write_bytes(content)
        with pytest.raises(UnusableMedia, match=message):
            read_codes(path)
    write_codes(path, codes_for(VIDEO), VIDEO)
    whole = path.read_bytes()
    for length in (4, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UnusableMedia, match="damaged or foreign"):
            read_codes(path)
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(UnusableMedia, match="not a code file"):
        read_codes(path)
    with pytest.raises(UnusableMedia, match=r"cannot be read|damaged"):
        read_codes(tmp_path)

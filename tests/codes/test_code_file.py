"""Code files: round trips, and refusal of foreign and damaged files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from magvit2_pytorch.codes.code_file import (
    CodeHeader,
    read_code_header,
    read_codes,
    video_metadata,
    write_codes,
)
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.version import __version__

HEADER = CodeHeader(
    kind="video",
    num_frames=6,
    height=13,
    width=16,
    padding=(3, 0),
    fps=29.97,
    grid=(4, 4, 4),
    codebook_size=1024,
    num_codebooks=1,
    time_factor=2,
    space_factor=4,
    tokenizer="run/tokenizer",
    fingerprint="0" * 64,
    source="clip.mp4",
)


def codes_for(header):
    codes = torch.randint(header.codebook_size, header.codes_shape)
    codes.view(-1)[:2] = torch.tensor([0, header.codebook_size - 1])
    return codes


@pytest.mark.parametrize("num_codebooks", [1, 3])
@pytest.mark.parametrize(
    ("codebook_size", "stored"),
    [(2, "uint16"), (2**16, "uint16"), (2**16 + 1, "int32"), (2**31, "int32"), (2**40, "int64")],
)
def test_round_trip_in_the_smallest_integers(tmp_path, num_codebooks, codebook_size, stored):
    header = replace(HEADER, codebook_size=codebook_size, num_codebooks=num_codebooks)
    codes = codes_for(header)
    path = tmp_path / "new" / "clip.codes.safetensors"
    write_codes(path, codes, header)
    again, header_again = read_codes(path)
    assert again.dtype == torch.int64
    assert torch.equal(again, codes)
    assert header_again == header == read_code_header(path)
    assert header_again.library_version == __version__
    assert load_file(path)["codes"].dtype == stored


def test_an_image_has_no_frame_rate(tmp_path):
    header = replace(HEADER, kind="image", num_frames=1, fps=None, grid=(1, 4, 4))
    write_codes(tmp_path / "x", codes_for(header), header)
    assert read_codes(tmp_path / "x")[1] == header
    with pytest.raises(ValueError, match="fps"):
        replace(header, fps=25.0)
    with pytest.raises(ValueError, match="fps"):
        replace(HEADER, fps=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_frames=8), "8 frames"),
        (dict(height=12), "12 x 16"),
        (dict(padding=(2, 0)), "padded by"),
        (dict(grid=(4, 4, 5)), r"grid of \(4, 4, 5\)"),
        (dict(codebook_size=0), "codebook_size is 0"),
        (dict(kind="image", fps=None), "num_frames is 6"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(HEADER, **change)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((4, 4, 4), 1024), "1024"),
        (torch.full((4, 4, 4), -1), "-1"),
        (torch.zeros(4, 4, 5, dtype=torch.int64), r"\(4, 4, 5\)"),
        (torch.zeros(4, 4, 4, 1, dtype=torch.int64), r"\(4, 4, 4, 1\)"),
    ],
)
def test_codes_that_do_not_match_the_header_are_refused(tmp_path, codes, message):
    with pytest.raises(ValueError, match=message):
        write_codes(tmp_path / "x", codes, HEADER)
    assert not list(tmp_path.iterdir())


def test_an_older_file_stays_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "clip.codes.safetensors"
    write_codes(path, codes_for(HEADER), HEADER)
    before = path.read_bytes()

    def full_disk(tensors, part, metadata):
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("magvit2_pytorch.codes.code_file.save_file", full_disk)
    with pytest.raises(OSError, match="space"):
        write_codes(path, codes_for(HEADER), HEADER)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def rewritten(path, codes=None, **metadata):
    codes = np.zeros((4, 4, 4), np.uint16) if codes is None else codes
    values = {"format": "magvit2-codes", "version": "1", **video_metadata(codes, HEADER)}
    save_file({"codes": codes}, path, metadata={**values, **metadata})


def header_json(**changes):
    return json.dumps({k: v for k, v in {**HEADER.to_dict(), **changes}.items() if v != "gone"})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (dict(format="someone's"), "not a code file"),
        (dict(version="2"), "version 2.*upgrade"),
        (dict(version="new"), "damaged"),
        (dict(header="{"), "damaged"),
        (dict(header="[]"), "damaged"),
        (dict(header=header_json(speed=3)), "speed"),
        (dict(header=header_json(width="gone")), "width"),
        (dict(header=header_json(width="wide")), "damaged"),
        (dict(header=header_json(grid=[4, 4, 5])), "grid"),
        (dict(codes=np.full((4, 4, 4), 5000, np.uint16)), "5000"),
        (dict(codes=np.zeros((4, 4), np.uint16)), "shape"),
        (dict(codes=np.zeros((4, 4, 4), np.float32)), "float"),
    ],
)
def test_foreign_newer_and_damaged_files_are_refused(tmp_path, metadata, message):
    path = tmp_path / "clip.codes.safetensors"
    rewritten(path)
    read_codes(path)
    rewritten(path, **metadata)
    with pytest.raises(UnusableMedia, match=message) as error:
        read_codes(path)
    assert error.value.path == str(path)
    if "codes" not in metadata:
        with pytest.raises(UnusableMedia, match=message):
            read_code_header(path)


def test_files_that_are_not_safetensors_are_refused(tmp_path):
    path = tmp_path / "clip.codes.safetensors"
    with pytest.raises(UnusableMedia, match="missing"):
        read_codes(path)
    for content, message in ((b"", "empty"), (b"hello, this is text", "damaged or foreign")):
        path.write_bytes(content)
        with pytest.raises(UnusableMedia, match=message):
            read_codes(path)
    write_codes(path, codes_for(HEADER), HEADER)
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

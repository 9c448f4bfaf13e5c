"""Shards: round trips, partial reads, and detection of every change."""

import json
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from magvit2_pytorch.codes import code_shards as shards
from magvit2_pytorch.codes.code_file import Origin, read_codes, write_codes
from magvit2_pytorch.codes.code_shards import (
    DamagedCodes,
    ShardName,
    ShardWriter,
    list_videos,
    load_codes,
    verify_codes,
)
from magvit2_pytorch.media.unusable import UnusableMedia
from tests.codes.test_code_file import HEADER, codes_for

FIRST = ShardName(0, 0, 0)


def origin(path="more/clip.mp4", **changes):
    about = dict(path=path, num_bytes=1234, mtime_ns=5678, size=None, precision="fp32")
    return Origin(**{**about, **changes})


def video_of(num_frames, number=0, **changes):
    """Header and codes of a video of this length."""
    latents = -(-(num_frames - 1) // 2) + 1
    changes = dict(num_frames=num_frames, grid=(latents, 4, 4), source=f"{number}.mp4", **changes)
    header = replace(HEADER, **changes)
    return codes_for(header), header


def write_shard(folder, videos, name=FIRST, max_bytes=10**9):
    """Writes shards of (path, codes, header); returns their paths."""
    writer = ShardWriter(folder, name, max_bytes)
    written = [writer.add(codes, header, origin(path)) for path, codes, header in videos]
    return [path for path in (*written, writer.flush()) if path]


def some_videos(num=5, **changes):
    return [(f"{n}.mp4", *video_of(3 + 2 * n, n, **changes)) for n in range(num)]


@pytest.mark.parametrize("num_codebooks", [1, 3])
@pytest.mark.parametrize(
    ("codebook_size", "stored"), [(2**16, "uint16"), (2**16 + 1, "int32"), (2**40, "int64")]
)
def test_round_trip(tmp_path, num_codebooks, codebook_size, stored):
    videos = some_videos(codebook_size=codebook_size, num_codebooks=num_codebooks)
    (path,) = write_shard(tmp_path / "new", videos)
    assert path.name == "codes-0000-00000-00000.safetensors"
    read = list_videos(path)
    tensors = load_file(path)
    assert len(read) == len(tensors) == len(videos)
    for (name, codes, header), video in zip(videos, read, strict=True):
        assert (video.header, video.origin) == (header, origin(name))
        assert torch.equal(load_codes(video.location), codes)
        assert load_codes(video.location).dtype == torch.int64
        assert tensors[video.key].dtype == stored
        assert np.array_equal(tensors[video.key], codes.numpy())
        verify_codes(video)


def test_a_part_of_the_codes_is_their_slice(tmp_path):
    (path,) = write_shard(tmp_path, some_videos(num_codebooks=2))
    for video in list_videos(path):
        whole = load_codes(video.location)
        for start in range(len(whole)):
            for stop in range(start, len(whole) + 1):
                assert torch.equal(load_codes(video.location, start, stop), whole[start:stop])


def video_sizes(path):
    """Bytes of codes and metadata of each video in a shard."""
    metadata, codes = safe_open(path, "np").metadata(), load_file(path)
    return [
        codes[key].nbytes + sum(len(text) for name, text in metadata.items() if key in name)
        for key in sorted(codes)
    ]


def test_shards_respect_their_size_and_lose_nothing(tmp_path):
    videos = some_videos(12)
    large = ("large.mp4", *video_of(4000))
    videos.insert(5, large)
    files = write_shard(tmp_path, videos, ShardName(2, 7, 0), max_bytes=3000)
    assert [ShardName.parse(path.name) for path in files] == [
        ShardName(2, 7, n) for n in range(len(files))
    ]
    assert len(files) > 3
    paths = [[video.origin.path for video in list_videos(path)] for path in files]
    assert [*chain(*paths)] == [name for name, *_ in videos]
    assert ["large.mp4"] in paths
    sizes = [video_sizes(path) for path in files]
    for names, of_videos in zip(paths, sizes, strict=True):
        assert sum(of_videos) <= 3000 or names == ["large.mp4"]
    for of_videos, (following, *_) in pairwise(sizes):
        assert sum(of_videos) + following > 3000


def test_metadata_of_many_videos_stays_below_the_limit_of_safetensors(tmp_path):
    codes, header = video_of(1)
    codes, header = codes[:1], replace(header, kind="image", fps=None)
    # The longest that there are, of bytes that take most room in JSON within JSON.
    paths = ["\udcff" * 4000 + str(number) for number in range(1000)]
    files = write_shard(tmp_path, [(path, codes, header) for path in paths])
    assert len(files) > 1
    assert [v.origin.path for path in files for v in list_videos(path)] == paths
    for path in files:
        with path.open("rb") as file:
            assert int.from_bytes(file.read(8), "little") < 50_000_000


def test_names_that_are_not_utf8_are_kept(tmp_path):
    strange = b"caf\xe9/\xff\xf0.mp4".decode("utf-8", "surrogateescape")
    codes, header = video_of(3)
    (path,) = write_shard(tmp_path, [(strange, codes, replace(header, source=strange))])
    (video,) = list_videos(path)
    assert video.origin.path == video.header.source == strange


def test_a_full_disk_leaves_no_part_and_keeps_the_collected_codes(tmp_path, monkeypatch):
    def full_disk(tensors, part, metadata):
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    writer = ShardWriter(tmp_path, FIRST, 10**9)
    codes, header = video_of(3)
    writer.add(codes, header, origin())
    with monkeypatch.context() as patch:
        patch.setattr(shards, "save_file", full_disk)
        with pytest.raises(OSError, match="no space"):
            writer.flush()
    assert not list(tmp_path.iterdir())
    assert torch.equal(load_codes(list_videos(writer.flush())[0].location), codes)
    assert writer.flush() is None


def test_an_existing_shard_is_not_replaced(tmp_path):
    (path,) = write_shard(tmp_path, some_videos(1))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="another process of rank 0"):
        write_shard(tmp_path, some_videos(2))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "name",
    [
        "codes.safetensors",
        "codes-1-2-3.safetensors",
        "x-0000-00000-00000.safetensors",
        "codes-0000-00000-00000.codes.safetensors",
        "codes-0000-00000-00000.safetensors.damaged",
    ],
)
def test_other_names_are_not_shards(name):
    assert ShardName.parse(name) is None
    for shard in (FIRST, ShardName(12345, 123456, 99999)):
        assert ShardName.parse(str(shard)) == shard


def seen(path):
    """Everything that reading a file returns; raises if it is damaged."""
    videos = list_videos(path)
    for video in videos:
        verify_codes(video)
    return [(v.header, v.origin, load_codes(v.location).tolist()) for v in videos]


def test_flipped_bits_of_a_shard_are_detected(tmp_path):
    (path,) = write_shard(tmp_path, some_videos(2))
    before, whole = seen(path), path.read_bytes()
    num_seen = 0
    for place in range(len(whole)):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        try:
            # U16 for I16 is a change that changes nothing.
            assert seen(path) == before, place
        except UnusableMedia:
            num_seen += 1
    assert num_seen > len(whole) - 10


def test_truncated_shards_are_detected(tmp_path):
    (path,) = write_shard(tmp_path, some_videos(3))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedCodes):
            list_videos(path)


def test_a_file_that_is_truncated_while_open_is_damaged(tmp_path):
    (path,) = write_shard(tmp_path, some_videos(2))
    video = list_videos(path)[-1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedCodes, match="ends before"):
        load_codes(video.location)


def rewritten(path, **changes):
    with safe_open(path, "np") as file:
        metadata = {**file.metadata(), **changes}
    said = {name: text for name, text in metadata.items() if "." in name}
    metadata["checksum"] = shards._checksum(said)
    save_file(load_file(path), path, metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "2"}, "version 2.*upgrade"),
        ({"format": "someone's"}, "not a code file"),
        ({"version": "new"}, "damaged"),
        ({"000000.header": "[]"}, "damaged"),
        ({"000000.origin": "[]"}, "damaged"),
        ({"000000.origin": json.dumps({"path": 3})}, "damaged"),
        ({"000000.origin": origin(7 * "x").to_json().replace("5678", '"x"')}, "mtime_ns"),
        ({"000007.header": "{}"}, "damaged"),
        ({"000000.more": "{}"}, "damaged"),
    ],
)
def test_foreign_and_newer_shards_are_refused(tmp_path, changes, message):
    (path,) = write_shard(tmp_path, some_videos(1))
    rewritten(path)
    seen(path)
    rewritten(path, **changes)
    with pytest.raises(UnusableMedia, match=message) as error:
        list_videos(path)
    # A file of a newer version is not damaged and must not be set aside.
    assert isinstance(error.value, DamagedCodes) == ("upgrade" not in message)


def test_missing_files_and_pickles_are_refused(tmp_path):
    with pytest.raises(UnusableMedia, match="missing") as error:
        list_videos(tmp_path / str(FIRST))
    assert not isinstance(error.value, DamagedCodes)
    torch.save({"codes": torch.zeros(3)}, tmp_path / str(FIRST))
    with pytest.raises(DamagedCodes, match="damaged or foreign"):
        list_videos(tmp_path / str(FIRST))


@pytest.mark.parametrize("known", [None, origin()])
def test_a_code_file_reads_as_a_shard_of_one(tmp_path, known):
    codes, header = video_of(9)
    path = tmp_path / "clip.codes.safetensors"
    write_codes(path, codes, header, known)
    (video,) = list_videos(path)
    assert (video.header, video.origin) == (header, known)
    assert torch.equal(load_codes(video.location, 1, 3), codes[1:3])
    verify_codes(video)


def test_flipped_bits_of_a_code_file_are_detected(tmp_path):
    path = tmp_path / "clip.codes.safetensors"
    write_codes(path, *video_of(5), origin())
    (codes, header), whole = read_codes(path), path.read_bytes()
    before, num_seen = seen(path), [0, 0]
    for place in range(len(whole)):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        try:
            again = read_codes(path)
            assert again[1] == header, place
            assert torch.equal(again[0], codes), place
        except UnusableMedia:
            num_seen[0] += 1
        try:
            assert [item[0::2] for item in seen(path)] == [item[0::2] for item in before], place
        except UnusableMedia:
            num_seen[1] += 1
    assert min(num_seen) > len(whole) - 10


def test_a_code_file_without_a_checksum_is_damaged(tmp_path):
    path = tmp_path / "clip.codes.safetensors"
    write_codes(path, *video_of(5))
    with safe_open(path, "np") as file:
        metadata = {n: t for n, t in file.metadata().items() if n != "checksum"}
    save_file(load_file(path), path, metadata)
    with pytest.raises(UnusableMedia, match="checksum"):
        read_codes(path)
    with pytest.raises(DamagedCodes, match="checksum"):
        seen(path)

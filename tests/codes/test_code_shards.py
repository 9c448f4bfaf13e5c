"""Shards: round trips, partial reads, and detection of every change."""

import resource
import sys
from dataclasses import asdict, replace
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from magvit2_pytorch.codes import code_file
from magvit2_pytorch.codes.code_file import (
    CodeFile,
    DamagedCodes,
    ShardName,
    ShardWriter,
    metadata_checksum,
    read_codes,
    write_codes,
)
from magvit2_pytorch.media.unusable import UnusableMedia
from tests.codes.test_code_file import HEADER, changed, coded_video, codes_for

FIRST = ShardName(0, 0, 0)


def video_of(num_frames, number=0, **changes):
    """Codes and metadata of a video of this length."""
    latents = -(-(num_frames - 1) // 2) + 1
    changes = dict(num_frames=num_frames, shape=(latents, 4, 4), source=f"{number}.mp4") | changes
    video = coded_video(**changes)
    return codes_for(video), video


def write_shard(folder, videos, name=FIRST, max_bytes=10**9):
    """Writes shards of (codes, video); returns their paths."""
    writer = ShardWriter(folder, name, max_bytes)
    written = [writer.add(codes, video) for codes, video in videos]
    return [path for path in (*written, writer.flush()) if path]


def some_videos(num=5, **changes):
    return [video_of(3 + 2 * n, n, **changes) for n in range(num)]


@pytest.mark.parametrize("num_codebooks", [1, 3])
@pytest.mark.parametrize(
    ("codebook_size", "stored"), [(2**16, "uint16"), (2**16 + 1, "int32"), (2**40, "int64")]
)
def test_round_trip(tmp_path, num_codebooks, codebook_size, stored):
    videos = some_videos(digit_levels=(codebook_size,), num_codebooks=num_codebooks)
    (path,) = write_shard(tmp_path / "new", videos)
    assert path.name == "codes-0000-00000-00000.safetensors"
    file = CodeFile(path)
    tensors = load_file(path)
    assert len(file.videos) == len(tensors) == len(videos)
    for index, (codes, video) in enumerate(videos):
        assert asdict(file.videos[index]) == asdict(video)
        assert file.videos[index].header is file.header
        assert torch.equal(file.read(index), codes)
        assert file.read(index).dtype == torch.int64
        assert tensors[f"{index:06}"].dtype == stored
        assert np.array_equal(tensors[f"{index:06}"], codes.numpy())
        assert torch.equal(file.read_verified(index), codes)


def test_sequences_of_any_length_share_a_shard(tmp_path):
    """Codes of a tokenizer with a variable number of tokens, for videos of any size."""
    videos = [video_of(9, n, shape=(length,)) for n, length in enumerate((128, 1, 17))]
    (path,) = write_shard(tmp_path, videos)
    for index, (codes, video) in enumerate(videos):
        assert CodeFile(path).videos[index] == video
        assert torch.equal(CodeFile(path).read_verified(index), codes)


def test_a_part_of_the_codes_is_their_slice(tmp_path):
    (path,) = write_shard(tmp_path, some_videos(num_codebooks=2))
    file = CodeFile(path)
    for index in range(len(file.videos)):
        whole = file.read(index)
        for start in range(len(whole) + 1):
            for stop in range(start, len(whole) + 2):
                assert torch.equal(file.read(index, start, stop), whole[start:stop])


def resident_bytes():
    """Resident memory with mapped files, whose pages come in as they are read."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_a_part_reads_no_more_of_the_file(tmp_path):
    """A window in the middle of 32 MB."""
    codes, video = video_of(2 * 255 + 1, shape=(256, 256, 256))
    (path,) = write_shard(tmp_path, [(codes, video), video_of(3, 1)])
    assert path.stat().st_size > 32_000_000
    file = CodeFile(path)
    before = resident_bytes()
    part = file.read(0, 125, 127)
    assert torch.equal(part, codes[125:127])
    assert resident_bytes() - before < 16_000_000
    file.read(0)
    assert resident_bytes() - before > 30_000_000  # so that the measurement sees what is read


def video_sizes(path):
    """Bytes of codes and metadata of each video in a shard."""
    metadata, codes = safe_open(path, "np").metadata(), load_file(path)
    return [
        codes[key].nbytes + sum(len(text) for name, text in metadata.items() if key in name)
        for key in sorted(codes)
    ]


def test_shards_respect_their_size_and_lose_nothing(tmp_path):
    videos = some_videos(12)
    large = video_of(4000, "large")
    videos.insert(5, large)
    files = write_shard(tmp_path, videos, ShardName(2, 7, 0), max_bytes=3000)
    assert [ShardName.parse(path.name) for path in files] == [
        ShardName(2, 7, n) for n in range(len(files))
    ]
    assert len(files) > 3
    paths = [[video.source for video in CodeFile(path).videos] for path in files]
    assert [*chain(*paths)] == [video.source for _, video in videos]
    assert ["large.mp4"] in paths
    sizes = [video_sizes(path) for path in files]
    for names, of_videos in zip(paths, sizes, strict=True):
        assert sum(of_videos) <= 3000 or names == ["large.mp4"]
    for of_videos, (following, *_) in pairwise(sizes):
        assert sum(of_videos) + following > 3000


def test_metadata_of_many_videos_stays_below_the_limit_of_safetensors(tmp_path):
    codes, image = video_of(1, kind="image", fps=None)
    # The longest that there are, of bytes that take most room in JSON within JSON.
    paths = ["\udcff" * 4000 + str(number) for number in range(1000)]
    files = write_shard(tmp_path, [(codes, replace(image, source=path)) for path in paths])
    assert len(files) > 1
    assert [v.source for path in files for v in CodeFile(path).videos] == paths
    for path in files:
        with path.open("rb") as file:
            assert int.from_bytes(file.read(8), "little") < 50_000_000


def test_a_video_costs_its_codes_and_few_bytes_of_metadata(tmp_path):
    paths = [
        write_shard(tmp_path, some_videos(1), ShardName(0, 0, 0)),
        write_shard(tmp_path, some_videos(1) * 101, ShardName(0, 0, 1)),
    ]
    one, many = (path.stat().st_size for (path,) in paths)
    assert (many - one) / 100 - 2 * 2 * 4 * 4 < 320


def test_names_that_are_not_utf8_are_kept(tmp_path):
    strange = b"caf\xe9/\xff\xf0.mp4".decode("utf-8", "surrogateescape")
    codes, video = video_of(3)
    (path,) = write_shard(tmp_path, [(codes, replace(video, source=strange))])
    assert CodeFile(path).videos[0].source == strange


def test_codes_of_other_options_are_refused(tmp_path):
    writer = ShardWriter(tmp_path, FIRST, 10**9)
    codes, video = video_of(3)
    writer.add(codes, video)
    writer.add(codes, replace(video, header=replace(HEADER, tokenizer="moved")))
    for change in (dict(fingerprint="1" * 64), dict(size=8), dict(precision="bf16")):
        with pytest.raises(ValueError, match="another folder"):
            writer.add(codes, replace(video, header=replace(HEADER, **change)))
    assert len(CodeFile(writer.flush()).videos) == 2


def test_a_full_disk_leaves_no_part_and_keeps_the_collected_codes(tmp_path, monkeypatch):
    def full_disk(tensors, part, metadata):
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    writer = ShardWriter(tmp_path, FIRST, 10**9)
    codes, video = video_of(3)
    writer.add(codes, video)
    with monkeypatch.context() as patch:
        patch.setattr(code_file, "save_file", full_disk)
        with pytest.raises(OSError, match="no space"):
            writer.flush()
    assert not list(tmp_path.iterdir())
    assert torch.equal(CodeFile(writer.flush()).read(), codes)
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
    file = CodeFile(path)
    return [(v, file.read_verified(index).tolist()) for index, v in enumerate(file.videos)]


def test_flipped_bits_of_a_shard_are_detected(tmp_path):
    (path,) = write_shard(tmp_path, some_videos(2))
    before, whole = seen(path), path.read_bytes()
    num_seen = 0
    for place in range(0, len(whole), 2):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place // 2 % 8]) + whole[place + 1 :]
        )
        try:
            # U16 for I16 is a change that changes nothing.
            assert seen(path) == before, place
        except UnusableMedia:
            num_seen += 1
    assert num_seen > len(whole) / 2 - 10


def test_truncated_shards_are_detected(tmp_path):
    (path,) = write_shard(tmp_path, some_videos(3))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedCodes):
            CodeFile(path)


def test_a_file_that_is_truncated_or_replaced_while_open_is_seen(tmp_path):
    """The process maps the file, and to read beyond its new end would kill it."""
    (path,) = write_shard(tmp_path, [video_of(20_001), video_of(3, 1)])
    file, whole = CodeFile(path), path.read_bytes()
    file.read()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedCodes, match="damaged or foreign"):
        file.read()
    path.unlink()
    with pytest.raises(UnusableMedia, match="missing"):
        file.read()
    codes, video = video_of(20_001)
    write_codes(path, codes, video)
    assert torch.equal(file.read(), codes)


def rewritten(path, **changes):
    with safe_open(path, "np") as file:
        metadata = {**file.metadata(), **changes}
    save_file(load_file(path), path, {**metadata, "checksum": metadata_checksum(metadata)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "2"}, "version 2.*upgrade"),
        ({"format": "someone's"}, "not a code file"),
        ({"version": "new"}, "damaged"),
        ({"header": "[]"}, "damaged"),
        ({"000000": "[]"}, "damaged"),
        ({"000001": changed(video_of(3)[1], state=5)}, "state is 5"),
        ({"000007": changed(video_of(3)[1])}, "damaged"),
        ({"000000.more": "{}"}, "damaged"),
    ],
)
def test_foreign_and_newer_shards_are_refused(tmp_path, changes, message, without_type_checks):
    (path,) = write_shard(tmp_path, some_videos(2))
    rewritten(path)
    seen(path)
    rewritten(path, **changes)
    with pytest.raises(UnusableMedia, match=message) as error:
        CodeFile(path)
    # A file of a newer version is not damaged and must not be set aside.
    assert isinstance(error.value, DamagedCodes) == ("upgrade" not in message)


def test_missing_files_and_pickles_are_refused(tmp_path):
    with pytest.raises(UnusableMedia, match="missing") as error:
        CodeFile(tmp_path / str(FIRST))
    assert not isinstance(error.value, DamagedCodes)
    torch.save({"codes": torch.zeros(3)}, tmp_path / str(FIRST))
    with pytest.raises(DamagedCodes, match="damaged or foreign"):
        CodeFile(tmp_path / str(FIRST))
    save_file({}, tmp_path / str(FIRST), {"format": "magvit2-codes", "version": "1"})
    with pytest.raises(DamagedCodes, match="damaged"):
        CodeFile(tmp_path / str(FIRST))


def test_a_file_of_one_video_reads_as_a_shard_of_one(tmp_path):
    codes, video = video_of(9)
    path = tmp_path / "clip.codes.safetensors"
    write_codes(path, codes, video)
    file = CodeFile(path)
    assert (file.header, file.videos) == (HEADER, [video])
    assert torch.equal(file.read(0, 1, 3), codes[1:3])
    (shard,) = write_shard(tmp_path, [(codes, video)])
    assert torch.equal(read_codes(shard)[0], codes)
    with safe_open(path, "np") as one, safe_open(shard, "np") as many:
        assert one.metadata() == many.metadata()

"""Stored codes as training examples: windows are slices, foreign codes are refused."""

import math
import multiprocessing
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from magvit2_pytorch.codes import code_file
from magvit2_pytorch.codes.code_file import ShardName, write_codes
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.data.loader import InfiniteBatches
from magvit2_pytorch.media.unusable import UnusableMedia
from tests.codes.test_code_file import HEADER
from tests.codes.test_code_shards import FIRST, some_videos, video_of, write_shard
from tests.processes import fresh


@pytest.fixture
def corpus(tmp_path):
    """Two shards, a shard of another corpus and a code file; gives the folder and its codes."""
    videos = some_videos(8)
    write_shard(tmp_path, videos[5::-2])
    write_shard(tmp_path, videos[4::-2], ShardName(0, 1, 0))
    write_shard(tmp_path / "b", videos[6:7])
    write_codes(tmp_path / "a" / "one.codes.safetensors", *videos[7])
    (tmp_path / "manifest.jsonl").write_text("")
    (tmp_path / "codes.safetensors").write_text("someone's")
    paths = [*(video.source for _, video in videos[:6]), "b/6.mp4", "a/one.codes.safetensors"]
    return tmp_path, dict(sorted(zip(paths, videos, strict=True)))


def test_whole_videos_are_sorted_by_path(corpus):
    folder, videos = corpus
    dataset = CodesDataset(folder)
    assert len(dataset) == len(videos)
    for number, (path, (codes, video)) in enumerate(videos.items()):
        item = dataset[number]
        assert torch.equal(item.codes, codes)
        assert item.codes.dtype == torch.int64
        about = (path, 0, video.num_frames, video.height, video.width, video.fps)
        assert item[1:] == about
        assert dataset.header(number) == video
    assert (dataset.codebook_size, dataset.num_codebooks) == (1024, 1)
    assert (dataset.digit_levels, dataset.fingerprint) == ((2,) * 10, HEADER.fingerprint)


@pytest.mark.filterwarnings("ignore:.*are left out")
@pytest.mark.parametrize(("length", "stride"), [(1, None), (3, None), (3, 1), (2, 3), (9, 4)])
def test_windows_are_slices(corpus, length, stride):
    folder, videos = corpus
    dataset = CodesDataset(str(folder), num_latent_frames=length, stride=stride)
    expected = [
        (path, start, codes[start : start + length])
        for path, (codes, _) in videos.items()
        for start in range(0, len(codes) - length + 1, stride or length)
    ]
    assert len(dataset) == len(expected)
    for number, (path, start, codes) in enumerate(expected):
        item = dataset[number]
        assert (item.path, item.start) == (path, start)
        assert torch.equal(item.codes, codes)
        assert dataset.header(number) == videos[path][1]
    for number in (len(dataset), -1):
        with pytest.raises(IndexError):
            dataset[number]


def test_several_codebooks_are_the_last_axis(tmp_path):
    videos = some_videos(3, num_codebooks=2, digit_levels=(2**17,))
    write_shard(tmp_path, videos)
    dataset = CodesDataset(tmp_path, num_latent_frames=2)
    assert dataset.num_codebooks == 2
    assert torch.equal(dataset[0].codes, videos[0][0][:2])
    assert dataset[0].codes.shape == (2, 4, 4, 2)


def test_sequences_of_codes_have_windows_too(tmp_path):
    videos = [video_of(9, n, shape=(length,)) for n, length in enumerate((128, 3, 17))]
    write_shard(tmp_path, videos)
    assert [item.codes.tolist() for item in CodesDataset(tmp_path)] == [
        codes.tolist() for codes, _ in videos
    ]
    with pytest.warns(UserWarning, match="1 of 3 videos"):
        dataset = CodesDataset(tmp_path, num_latent_frames=8)
    assert len(dataset) == 128 // 8 + 17 // 8
    assert torch.equal(dataset[17].codes, videos[2][0][8:16])


def test_short_videos_are_left_out_and_counted(corpus):
    folder, videos = corpus
    with pytest.warns(UserWarning, match="3 of 8 videos .* fewer than 5 latent frames"):
        dataset = CodesDataset(folder, num_latent_frames=5)
    assert {item.path for item in dataset} == {p for p, (c, _) in videos.items() if len(c) >= 5}
    with pytest.raises(ValueError, match=r"none of the 8 videos .* the longest has 9"):
        CodesDataset(folder, num_latent_frames=10)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_equal_one_process(corpus, method):
    """They inherit the dataset with its open files, or get it pickled."""
    folder, _ = corpus
    dataset = CodesDataset(folder, num_latent_frames=2, stride=1)
    dataset[0]
    context = multiprocessing.get_context(method) if method == "fork" else fresh()
    num_workers = 2 if method == "fork" else 1
    loader = DataLoader(
        dataset, batch_size=4, num_workers=num_workers, multiprocessing_context=context
    )
    batches = list(loader)
    expected = [dataset[number] for number in range(len(dataset))]
    assert torch.equal(
        torch.cat([b.codes for b in batches]), torch.stack([i.codes for i in expected])
    )
    assert [path for b in batches for path in b.path] == [i.path for i in expected]
    assert torch.cat([b.start for b in batches]).tolist() == [i.start for i in expected]


def test_it_trains_through_the_resumable_loader(corpus):
    folder, _ = corpus
    dataset = CodesDataset(folder, num_latent_frames=2)
    batches = InfiniteBatches(dataset, 3)
    first = [next(batches).codes for _ in range(6)]
    batches.set_position(4)
    assert torch.equal(next(batches).codes, first[4])


def test_images_without_frame_rate_can_be_batched(tmp_path):
    write_shard(tmp_path, [video_of(1, n, kind="image", fps=None) for n in range(2)])
    (batch,) = DataLoader(CodesDataset(tmp_path), batch_size=2)
    assert batch.fps.isnan().all()
    assert math.isnan(CodesDataset(tmp_path)[0].fps)


def test_later_codes_of_the_same_video_take_precedence(tmp_path):
    old, new = (video_of(9, "clip") for _ in range(2))
    write_shard(tmp_path, [new], ShardName(10000, 0, 0))
    write_shard(tmp_path, [old, video_of(5, "other")], ShardName(9999, 12, 3))
    dataset = CodesDataset(tmp_path)
    assert [item.path for item in dataset] == ["clip.mp4", "other.mp4"]
    assert torch.equal(dataset[0].codes, new[0])
    assert not torch.equal(old[0], new[0])


@pytest.mark.parametrize("single", [False, True])
def test_codes_of_another_tokenizer_are_refused(corpus, single):
    folder, _ = corpus
    codes, video = video_of(5)
    header = replace(HEADER, fingerprint="f" * 64, tokenizer="another/run")
    video = replace(video, header=header)
    if single:
        write_codes(folder / "z.codes.safetensors", codes, video)
    else:
        write_shard(folder, [(codes, video)], ShardName(0, 2, 0))
    with pytest.raises(ValueError, match="different tokenizers") as error:
        CodesDataset(folder)
    for said in ("run/tokenizer", "another/run", "000000000000", "ffffffffffff"):
        assert said in str(error.value)


def test_folders_without_codes_and_impossible_windows_are_refused(tmp_path, corpus):
    with pytest.raises(FileNotFoundError, match="no folder"):
        CodesDataset(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no codes"):
        CodesDataset(tmp_path / "empty")
    for options, message in (
        (dict(num_latent_frames=0), "num_latent_frames is 0"),
        (dict(num_latent_frames=2, stride=0), "stride is 0"),
        (dict(stride=2), "give num_latent_frames"),
    ):
        with pytest.raises(ValueError, match=message):
            CodesDataset(tmp_path, **options)


def test_damage_is_named_on_opening_or_on_reading(corpus):
    folder, _ = corpus
    path = folder / str(FIRST)
    whole = path.read_bytes()
    # The largest uint16 is no code of this codebook.
    path.write_bytes(whole[:-4] + b"\xff\xff\xff\xff")
    dataset = CodesDataset(folder)
    with pytest.raises(UnusableMedia, match=str(FIRST)):
        list(dataset)
    path.write_bytes(whole[:-1])
    with pytest.raises(UnusableMedia, match=str(FIRST)):
        CodesDataset(folder)


def test_a_pickle_named_like_a_shard_is_not_executed(corpus, tmp_path):
    folder, _ = corpus

    class Malice:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").touch, ())

    for name in (str(ShardName(3, 0, 0)), "x.codes.safetensors"):
        (folder / name).write_bytes(pickle.dumps(Malice()))
        with pytest.raises(UnusableMedia, match="damaged or foreign"):
            CodesDataset(folder)
        (folder / name).unlink()
    assert not (tmp_path / "harm").exists()


def test_opening_many_videos_reads_no_codes_and_needs_little_memory(tmp_path, monkeypatch):
    codes, video = video_of(5)
    num = 2_000
    videos = [(codes, replace(video, source=f"{n:03}.mp4")) for n in range(num // 10)]
    for path in write_shard(tmp_path / "0", videos, max_bytes=10**5):
        for number in range(1, 10):
            (tmp_path / str(number)).mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / str(number))

    def read(*args, **options):
        raise AssertionError("codes were read")

    with monkeypatch.context() as patch:
        patch.setattr(code_file, "_open", read)
        dataset = CodesDataset(tmp_path, num_latent_frames=1)
        with pytest.raises(AssertionError, match="codes were read"):
            dataset[0]
    assert len(dataset) == 3 * num
    assert torch.equal(dataset[3 * num - 1].codes, codes[2:])
    assert dataset[3 * num - 1].path == "9/199.mp4"
    # What a worker is sent, and holds.
    assert len(pickle.dumps(dataset)) < 150 * num

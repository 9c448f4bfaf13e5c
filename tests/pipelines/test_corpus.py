"""A corpus of files to shards: each input once, whatever happens in between."""

import json
import os
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from magvit2_pytorch.codes.code_file import CodeFile, ShardName
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.pipelines import corpus
from magvit2_pytorch.pipelines.corpus import CorpusMismatch, tokenize_corpus
from magvit2_pytorch.pipelines.files import decode_file, tokenize_file
from magvit2_pytorch.pipelines.fingerprint import TokenizerId
from magvit2_pytorch.pipelines.inference import Inference
from magvit2_pytorch.pipelines.progress import FileProgress
from tests.conftest import build
from tests.data.clip_files import make_audio
from tests.evaluation.clips import clip


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return build("compress_space", "compress_time")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Seven clips of all lengths and some sizes, and three files that are none."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "more").mkdir()
    for number in range(6):
        clip(folder, 3 + 2 * number, 16, 16 + 4 * (number % 2), f"{number}.mkv")
    clip(folder / "more", 5, 12, 16, "0.mkv")
    (folder / "empty.mp4").touch()
    (folder / "broken.mp4").write_bytes(b"no video at all")
    make_audio(folder / "sound.avi")
    return folder


BROKEN = ["broken.mp4", "empty.mp4", "sound.avi"]


def inputs_of(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def run(tokenizer, clips, out, **options):
    # One or two videos to a shard.
    return tokenize_corpus(tokenizer, inputs_of(clips), out, **{"max_shard_bytes": 800, **options})


def stored(out):
    """Path to codes and metadata, over all shards; each path must come once."""
    files = [CodeFile(path) for path in sorted(out.glob("codes-*.safetensors"))]
    videos = [(file, *pair) for file in files for pair in enumerate(file.videos)]
    counts = Counter(video.source for *_, video in videos)
    assert set(counts.values()) <= {1}, counts
    return {video.source: (file.read(index), video) for file, index, video in videos}


def manifest(out):
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == sorted({line["path"] for line in lines})
    return {line["path"]: line for line in lines}


def check_complete(tokenizer, clips, out, **options):
    """Every input once, with the codes of `tokenize_file`, and in the manifest."""
    found, lines = stored(out), manifest(out)
    assert set(lines) == set(inputs_of(clips))
    assert sorted(found) == sorted(set(inputs_of(clips)) - set(BROKEN))
    for path, file in inputs_of(clips).items():
        line = lines[path]
        if path in BROKEN:
            assert line["status"] == "failed"
            assert len(line["reason"]) > 5
            continue
        codes, video = tokenize_file(tokenizer, file, **options)
        assert torch.equal(found[path][0], codes)
        assert found[path][1] == replace(video, source=path)
        assert np.array_equal(load_file(out / line["shard"])[line["key"]], codes.numpy())
        about = (line["status"], line["num_frames"], tuple(line["shape"]))
        assert about == ("done", video.num_frames, video.shape)


def numbers(report):
    before = (report.num_done_before, report.num_failed_before)
    return (report.num_inputs, *before, report.num_done, len(report.failed))


def test_each_input_has_the_codes_that_it_has_alone(tokenizer, clips, tmp_path):
    report = run(
        tokenizer, clips, tmp_path / "out", size=12, inference=Inference("bf16", chunk_frames=4)
    )
    assert numbers(report) == (10, 0, 0, 7, 3)
    options = dict(size=12, inference=Inference("bf16", chunk_frames=4))
    check_complete(tokenizer, clips, tmp_path / "out", **options)
    assert len(list((tmp_path / "out").glob("codes-*"))) > 3
    reasons = {failure.path: failure.reason for failure in report.failed}
    assert reasons.keys() == set(BROKEN)
    assert "cannot be decoded" in reasons["broken.mp4"]
    assert "video" in reasons["sound.avi"]


def test_what_is_done_is_not_done_again(tokenizer, clips, tmp_path, monkeypatch):
    run(tokenizer, clips, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(corpus, "tokenize_file", None)
    report = run(tokenizer, clips, tmp_path, max_shard_bytes=10**6)
    assert numbers(report) == (10, 7, 3, 0, 0)
    assert report.num_to_do == 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("world_size", [2, 3, 12])
def test_processes_share_the_inputs_in_any_order(tokenizer, clips, tmp_path, world_size):
    order = torch.randperm(world_size).tolist()
    reports = [run(tokenizer, clips, tmp_path, rank=r, world_size=world_size) for r in order]
    check_complete(tokenizer, clips, tmp_path)
    assert sum(report.num_inputs for report in reports) == 10
    sizes = [report.num_inputs for report in reports]
    assert max(sizes) - min(sizes) <= 1
    assert sum(report.num_done for report in reports) == 7


class StopAfter(FileProgress):
    def __init__(self, path, error=KeyboardInterrupt, within=False):
        self.path, self.error, self.within = path, error, within

    def finished(self, path, reason):
        if path == self.path and not self.within:
            raise self.error

    def frames(self, path, done, total):
        if path == self.path and self.within and done:
            raise self.error


@pytest.mark.parametrize("within", [False, True])
def test_what_is_ready_survives_an_interruption(tokenizer, clips, tmp_path, within):
    progress = StopAfter("3.mkv", within=within)
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, clips, tmp_path, progress=progress, max_shard_bytes=10**9)
    done = ["0.mkv", "1.mkv", "2.mkv", *["3.mkv"] * (not within)]
    assert sorted(stored(tmp_path)) == done
    assert [path for path, line in manifest(tmp_path).items() if line["status"] == "done"] == done
    report = run(tokenizer, clips, tmp_path)
    assert report.num_done_before == len(done)
    check_complete(tokenizer, clips, tmp_path)


@pytest.mark.parametrize("world_size", [1, 3])
def test_any_number_of_processes_finishes_what_another_number_began(
    tokenizer, clips, tmp_path, world_size
):
    run(tokenizer, clips, tmp_path, rank=0, world_size=2)
    progress = StopAfter("3.mkv", RuntimeError)
    with pytest.raises(RuntimeError):
        run(tokenizer, clips, tmp_path, rank=1, world_size=2, progress=progress)
    before = stored(tmp_path)
    reports = [
        run(tokenizer, clips, tmp_path, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert sum(report.num_done for report in reports) == 7 - len(before) > 0
    check_complete(tokenizer, clips, tmp_path)


def test_failed_inputs_are_tried_again_when_asked_or_when_they_changed(tokenizer, clips, tmp_path):
    here, out = shutil.copytree(clips, tmp_path / "in"), tmp_path / "out"
    run(tokenizer, here, out)
    assert numbers(run(tokenizer, here, out)) == (10, 7, 3, 0, 0)
    assert numbers(run(tokenizer, here, out, retry_failed=True)) == (10, 7, 0, 0, 3)
    shutil.copy(here / "2.mkv", here / "broken.mp4")
    report = run(tokenizer, here, out)
    assert numbers(report) == (10, 7, 2, 1, 0)
    assert manifest(out)["broken.mp4"]["status"] == "done"
    assert numbers(run(tokenizer, here, out, retry_failed=True)) == (10, 8, 0, 0, 2)
    assert manifest(out)["broken.mp4"]["status"] == "done"


@pytest.mark.parametrize("same_size", [False, True])
def test_an_input_that_changed_is_done_again_and_its_new_codes_count(
    tokenizer, clips, tmp_path, same_size
):
    here, out = shutil.copytree(clips, tmp_path / "in"), tmp_path / "out"
    run(tokenizer, here, out)
    if same_size:
        os.utime(here / "0.mkv", ns=(0, 12345))
    else:
        shutil.copy(here / "5.mkv", here / "0.mkv")
    assert numbers(run(tokenizer, here, out)) == (10, 6, 3, 1, 0)
    assert numbers(run(tokenizer, here, out)) == (10, 7, 3, 0, 0)
    dataset = CodesDataset(out)
    assert len(dataset) == 7
    codes, video = tokenize_file(tokenizer, here / "0.mkv")
    assert torch.equal(dataset[0].codes, codes)
    assert manifest(out)["0.mkv"]["num_frames"] == video.num_frames


class Damages(FileProgress):
    def __init__(self):
        self.said = {}

    def damaged(self, file, what):
        self.said[file.name] = what


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["codes", "header", "cut", "empty"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_damaged_shards_are_named_and_their_inputs_done_again(
    tokenizer, clips, tmp_path, damage, world_size
):
    run(tokenizer, clips, tmp_path, max_shard_bytes=3000)
    first = tmp_path / str(ShardName(0, 0, 0))
    *_, last = inside = [video.source for video in CodeFile(first).videos]
    assert len(inside) > 1
    if damage == "codes":
        flip(first, -1)
    elif damage == "header":
        flip(first, first.read_bytes().index(b"num_frames") + 14)
    else:
        first.write_bytes(first.read_bytes()[: -1 if damage == "cut" else 0])
    progress, reports = Damages(), []
    for rank in range(world_size):
        options = dict(rank=rank, world_size=world_size, progress=progress)
        reports.append(run(tokenizer, clips, tmp_path, **options))
    assert list(progress.said) == [first.name]
    again = [last] if damage == "codes" else inside
    assert sum(report.num_done for report in reports) == len(again)
    assert numbers(run(tokenizer, clips, tmp_path)) == (10, 7, 3, 0, 0)
    dataset = CodesDataset(tmp_path)
    assert len(dataset) == 7
    for item in dataset:
        assert torch.equal(item.codes, tokenize_file(tokenizer, clips / item.path)[0])
    if damage != "codes":
        assert first.with_name(f"{first.name}.damaged").exists()
        check_complete(tokenizer, clips, tmp_path)


def test_a_shard_of_a_newer_version_stops_the_run_and_stays(tokenizer, clips, tmp_path):
    from tests.codes.test_code_shards import rewritten

    run(tokenizer, clips, tmp_path)
    rewritten(tmp_path / str(ShardName(0, 0, 0)), version="2")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UnusableMedia, match="upgrade"):
        run(tokenizer, clips, tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_another_size_precision_or_tokenizer_is_refused_with_what_differs(
    tokenizer, clips, tmp_path
):
    run(tokenizer, clips, tmp_path, tokenizer_id=TokenizerId.of(tokenizer, "run/tokenizer"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    torch.manual_seed(1)
    other = build("compress_space", "compress_time")
    changes = [
        (tokenizer, dict(size=8), ["size as it is, not 8"]),
        (tokenizer, dict(inference=Inference("bf16")), ["precision fp32, not bf16"]),
        (tokenizer, dict(size=8, inference=Inference("bf16")), ["size as it is", "precision fp32"]),
        (
            other,
            dict(tokenizer_id=TokenizerId.of(other, "b")),
            ["the tokenizer run/tokenizer (", "not b ("],
        ),
    ]
    for which, options, said in changes:
        with pytest.raises(CorpusMismatch) as error:
            run(which, clips, tmp_path, **options)
        for text in said:
            assert text in str(error.value)
        others = {"size", "precision", "tokenizer run"} - set(" ".join(said).split())
        assert not [text for text in others - {"tokenizer run"} if f"{text} " in str(error.value)]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("error", [MemoryError, torch.cuda.OutOfMemoryError])
def test_an_input_too_large_for_the_memory_fails_alone(
    tokenizer, clips, tmp_path, monkeypatch, error
):
    def hungry(tokenizer, file, **options):
        if file.name == "2.mkv":
            raise error
        return tokenize_file(tokenizer, file, **options)

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "tokenize_file", hungry)
        report = run(tokenizer, clips, tmp_path)
    assert report.num_done == 6
    assert "memory" in manifest(tmp_path)["2.mkv"]["reason"]
    assert numbers(run(tokenizer, clips, tmp_path)) == (10, 6, 4, 0, 0)
    run(tokenizer, clips, tmp_path, retry_failed=True)
    check_complete(tokenizer, clips, tmp_path)


def test_a_file_that_is_gone_when_its_turn_comes_fails_alone(tokenizer, clips, tmp_path):
    here, out = shutil.copytree(clips, tmp_path / "in"), tmp_path / "out"

    class Remove(FileProgress):
        def planned(self, report):
            (here / "3.mkv").unlink()

    inputs = inputs_of(here)
    report = tokenize_corpus(tokenizer, inputs, out, progress=Remove())
    assert (report.num_done, len(report.failed)) == (6, 4)
    assert "missing" in manifest(out)["3.mkv"]["reason"]
    shutil.copy(here / "4.mkv", here / "3.mkv")
    assert tokenize_corpus(tokenizer, inputs, out).num_done == 1


def test_a_failure_that_was_cut_short_is_found_again(tokenizer, clips, tmp_path):
    run(tokenizer, clips, tmp_path)
    (log,) = tmp_path.glob("failed-*.jsonl")
    log.write_text(log.read_text()[:-10])
    assert numbers(run(tokenizer, clips, tmp_path)) == (10, 7, 2, 0, 1)
    check_complete(tokenizer, clips, tmp_path)


def test_the_manifest_knows_what_came_while_it_was_written(tokenizer, clips, tmp_path, monkeypatch):
    from magvit2_pytorch.pipelines import corpus

    run(tokenizer, clips, tmp_path, rank=0, world_size=2)
    replacing, late = corpus.replacing, []

    def slow(path):
        if not late:
            late.append(path)
            run(tokenizer, clips, tmp_path, rank=1, world_size=2)
            manifest(tmp_path)
        return replacing(path)

    monkeypatch.setattr(corpus, "replacing", slow)
    run(tokenizer, clips, tmp_path, rank=0, world_size=2)
    check_complete(tokenizer, clips, tmp_path)


def test_what_the_dataset_gives_can_be_decoded(tokenizer, clips, tmp_path):
    run(tokenizer, clips, tmp_path)
    dataset = CodesDataset(tmp_path)
    decode_file(tokenizer, dataset[3].codes, dataset.header(3), tmp_path / "out.mp4")
    file = VideoFile(tmp_path / "out.mp4")
    assert (file.num_frames, file.height, file.width) == (9, 16, 20)
    assert dataset[3].num_frames == 9

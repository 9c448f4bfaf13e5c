"""tokenize by several processes, killed and started again, to shards and to code files."""

import os
import re
import shutil
import signal
from collections import Counter

import pytest
import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.codes.code_file import CodeFile, read_codes
from magvit2_pytorch.codes.codes_dataset import CodesDataset
from magvit2_pytorch.pipelines.files import tokenize_file
from tests.cli import corpus_worker
from tests.cli.test_interrupted import read, running
from tests.data.clip_files import make_video
from tests.pipelines.test_corpus import manifest
from tests.processes import Started

NUM_CLIPS = 11
ALL = sorted([*(f"more/{n}.mkv" if n % 3 == 0 else f"{n}.mkv" for n in range(NUM_CLIPS))])


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Eleven clips and a broken file."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "more").mkdir()
    for name in ALL:
        make_video(folder / name, 5, 16, 16, codec="ffv1")
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def start(rank, world_size, *words, where="nowhere", number=0):
    names = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world_size)
    return Started(corpus_worker.main, where, number, *map(str, words), **names)


def shards_words(many, model, out):
    return ("tokenize", many, "--model", model, "-o", out, "--shard_mb", 0.0006)


def paths_in(out):
    found = [v.source for p in out.glob("codes-*") for v in CodeFile(p).videos]
    assert set(Counter(found).values()) == {1}
    return sorted(found)


@pytest.mark.parametrize(
    ("where", "number", "again"), [("file", 5, 1), ("shard", 2, 3)], ids=["in-a-file", "in-a-shard"]
)
def test_a_killed_process_is_made_up_for_by_any_number(
    run, monkeypatch, tmp_path, many, model, where, number, again
):
    out = tmp_path / "out"
    words = shards_words(many, model, out)
    killed = start(1, 2, *words, where=where, number=number)
    whole = start(0, 2, *words)
    with killed, whole:
        assert whole.wait() == 0, whole.stderr
        assert "process 1 of 2: 6 inputs, 6 to do" in whole.stdout
        assert killed.wait() == -signal.SIGKILL
    assert len(list(out.glob(".part*"))) == (where == "shard")
    left = len(ALL) - len(paths_in(out))
    assert 0 < left <= 4
    told = []
    for rank in range(again):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(again))
        status, said, _ = run(*words)
        assert status == 0
        told += re.findall(r"(\d+) done[;,]", said)
    assert sum(map(int, told)) == left
    assert not list(out.glob(".*"))
    assert paths_in(out) == ALL
    lines = manifest(out)
    assert {path for path, line in lines.items() if line["status"] == "done"} == set(ALL)
    assert "cannot be decoded" in lines["broken.mp4"]["reason"]
    tokenizer = VideoTokenizer.from_pretrained(model)
    for item in CodesDataset(out):
        assert torch.equal(item.codes, tokenize_file(tokenizer, many / item.path)[0])


def test_ctrl_c_keeps_what_is_whole_and_says_how_to_go_on(run, tmp_path, many, model):
    words = (*shards_words(many, model, tmp_path / "out")[:-1], 10)
    with start(0, 1, *words, where="interrupt", number=4) as stopped:
        assert stopped.wait() == 130
        assert "run the same command again to continue" in stopped.stderr
        assert "Traceback" not in stopped.stderr
    assert paths_in(tmp_path / "out") == ALL[:3]
    assert "3 done before" in run(*words)[1]
    assert paths_in(tmp_path / "out") == ALL


def test_a_corpus_tells_what_it_does(run, tmp_path, many, model):
    words = shards_words(many, model, tmp_path / "out")
    status, said, err = run(*words)
    assert status == 0
    assert said.startswith("12 inputs, 12 to do\n")
    assert re.search(r"codes-0000-00000-00000.safetensors: written after \d+ of 12 files", said)
    assert "11 done, 1 failed; see" in said.splitlines()[-1]
    assert re.findall("magvit2: skipped: (.*?):", err) == ["broken.mp4"]
    status, said, err = run(*words)
    assert (status, err) == (0, "")
    assert "12 inputs, 11 done before, 1 failed before (--retry_failed tries them" in said
    status, said, err = run(*words, "--retry_failed")
    assert "1 failed" in said.splitlines()[-1]
    assert status == 1
    status, said, err = run(*words, "--size", 8)
    assert (status, said) == (1, "")
    assert "was started with size as it is, not 8" in err
    assert err.count("\n") == 1


def test_the_bar_counts_files_and_tells_the_time_left(tmp_path, many, model):
    options = ("--shard_mb", 0.0006)
    with running("tokenize", many, *options, model=model, output=tmp_path) as (process, terminal):
        shown = read(terminal)
        assert process.wait() == 0
    assert re.search(r"\b[1-9]\d?/12 \[\d\d:\d\d<\d\d:\d\d, .*file", shown)
    assert re.search(r"10\.mkv [1-5]/5", shown)


def test_a_damaged_shard_is_named(run, tmp_path, many, model):
    words = shards_words(many, model, tmp_path / "out")
    run(*words)
    shard = sorted((tmp_path / "out").glob("codes-*"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    status, _, err = run(*words)
    assert status == 0
    assert re.fullmatch(
        rf"magvit2: warning: {shard}: is damaged.*; its inputs are tokenized again\n", err
    )
    (tmp_path / "out" / f"{shard.name}.damaged").rename(tmp_path / "aside")
    assert paths_in(tmp_path / "out") == ALL


def test_code_files_that_are_there_are_not_made_again(run, tmp_path, many, model):
    here, out = shutil.copytree(many / "more", tmp_path / "in"), tmp_path / "out"
    num_files = len(list(here.iterdir()))
    words = ("tokenize", here, "--model", model, "-o", out)
    assert run(*words)[1].count("already there") == 0
    files = sorted(out.rglob("*.codes.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in files}
    status, said, _ = run(*words)
    assert status == 0
    assert said.count("already there") == num_files == len(files)
    assert {path: path.stat().st_mtime_ns for path in files} == before

    first, second = files[:2]
    content = bytearray(first.read_bytes())
    content[-2] ^= 1
    first.write_bytes(content)
    changed = here / second.relative_to(out).with_name(second.name.split(".")[0] + ".mkv")
    os.utime(changed, ns=(0, 12345))
    assert run(*words)[1].count("already there") == num_files - 2
    read_codes(first)
    for options in (["--size", 8], ["--precision", "bf16"], ["--size", 8]):
        assert "already there" not in run(*words, *options)[1]
    assert run(*words, "--size", 8)[1].count("already there") == num_files
    torch.manual_seed(1)
    VideoTokenizer.from_preset("tiny").save_pretrained(tmp_path / "other")
    words = ("tokenize", here, "--model", tmp_path / "other", "-o", out, "--size", 8)
    assert "already there" not in run(*words)[1]


def test_another_file_of_the_same_name_is_not_taken_for_done(run, tmp_path, many, model):
    for folder, name in (("a", ALL[0]), ("b", ALL[1])):
        (tmp_path / folder).mkdir()
        shutil.copy(many / name, tmp_path / folder / "x.mkv")
        words = ("tokenize", tmp_path / folder / "x.mkv", "--model", model)
        _, said, _ = run(*words, "-o", tmp_path / "out.codes.safetensors")
        assert "already there" not in said


@pytest.mark.parametrize("world_size", [2, 13])
def test_processes_share_code_files_and_none_ends_the_others(
    run, monkeypatch, tmp_path, many, model, world_size
):
    out = tmp_path / "out"
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    made = []
    for rank in range(world_size):
        monkeypatch.setenv("RANK", str(rank))
        status, said, _ = run("tokenize", many, "--model", model, "-o", out)
        # torchrun and its like stop all when one ends with another status.
        assert status == 0
        assert "already" not in said
        assert f"process {rank + 1} of {world_size}: " in said
        made += re.findall(r"/out/(.*)\.codes\.safetensors: ", said)
    assert sorted(f"{name}.mkv" for name in made) == ALL


@pytest.mark.parametrize(("world_size", "status"), [(12, 0), (1, 1)])
def test_a_share_of_broken_files_ends_no_other(
    run, monkeypatch, tmp_path, many, model, world_size, status
):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setenv("RANK", str(sorted([*ALL, "broken.mp4"]).index("broken.mp4") % world_size))
    source = many if world_size > 1 else many / "broken.mp4"
    got, said, err = run(*shards_words(source, model, tmp_path / "out"))
    assert "0 done, 1 failed; see" in said
    assert "broken.mp4" in err
    assert got == status


@pytest.mark.parametrize(
    ("names", "said"),
    [(dict(RANK="2", WORLD_SIZE="2"), "RANK=2"), (dict(RANK="x", WORLD_SIZE="2"), "numbers")],
)
def test_impossible_processes_are_refused(run, monkeypatch, tmp_path, many, model, names, said):
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    status, _, err = run("tokenize", many, "--model", model, "-o", tmp_path / "out")
    assert status == 1
    assert said in err
    assert not (tmp_path / "out").exists()


def test_each_process_has_its_own_gpu(monkeypatch):
    from magvit2_pytorch.cli.jobs import current_process

    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("WORLD_SIZE", "8")
    for rank, local_rank in ((4, "0"), (5, "1"), (6, "2"), (7, "")):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        current_process().select_gpu()
    assert chosen == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--shard_mb", "0"], 2, "--shard_mb 0"),
        (["--shard_mb", "nan"], 2, "nan"),
        (["--retry_failed"], 2, "--retry_failed requires --shard_mb"),
        (["--shard_mb", "1", "-o", "x.codes.safetensors"], 1, "name a folder"),
    ],
)
def test_options_that_cannot_be_are_refused(run, tmp_path, many, model, options, status, said):
    words = ("tokenize", many, "--model", model, "-o", tmp_path / "out", *options)
    got, _, err = run(*words)
    assert got == status
    assert said in err
    assert not list(tmp_path.iterdir())

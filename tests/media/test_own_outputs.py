"""Outputs that lie among the inputs are never taken for inputs."""

import json

import pytest
import torch

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.data.cache import FrameCache
from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import VideoDataset
from magvit2_pytorch.media.images import write_image
from magvit2_pytorch.media.sources import find_media, walk
from tests.cli.conftest import clips, model, run  # noqa: F401
from tests.conftest import SMALL
from tests.data.clip_files import make_video


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        make_video(folder / f"{number}.mp4", 6, 16, 16)
    return folder


def tell(caplog):
    return [text for text in caplog.messages if "is left out" in text]


@pytest.mark.parametrize(
    ("files", "contents"),
    [
        (["run.json", "log.jsonl", "step-5-clip-0.mp4"], "a training run"),
        (["report.json", "clips.jsonl", "worst.mp4"], "an evaluation"),
        (["codes-0000-00000-00000.safetensors", "x.mp4"], "a corpus of codes"),
        (["CACHEDIR.TAG", "x.mp4"], "a cache"),
        (["run.json", "x.mp4"], None),
        (["manifest.jsonl", "report.json", "x.mp4"], None),
    ],
)
def test_folders_that_we_write_are_left_out_below_others(tmp_path, caplog, files, contents):
    touch(tmp_path, "a.mp4")
    touch(tmp_path / "deep" / "ours", *files)
    touch(tmp_path / "deep" / "ours" / "wandb", "media.mp4")
    touch(tmp_path / "deep" / "theirs", "b.mp4")
    names = [path.name for path in find_media(tmp_path)]
    assert ("media.mp4" in names) == (contents is None)
    assert {"a.mp4", "b.mp4"} <= set(names)
    find_media(tmp_path)
    said = [f"{tmp_path}: {tmp_path / 'deep' / 'ours'}, {contents}, is left out"]
    assert tell(caplog) == (said if contents else [])
    # A folder that somebody names is read, and codes are read wherever they are.
    assert len(find_media(tmp_path / "deep" / "ours")) >= 1
    assert len(list(walk(tmp_path))) == len(files) + 3


def test_a_cache_is_known_by_its_tag(tmp_path, videos):
    VideoDataset(videos, ClipSpec(num_frames=5, image_size=16), cache_dir=videos / "cache")
    touch(videos / "cache", "x.mp4")
    assert len(find_media(videos)) == 3
    FrameCache(videos)  # a folder of somebody else's files gets no tag
    assert not (videos / "CACHEDIR.TAG").exists()


def test_reconstructing_again_reads_the_same_files(run, videos, model):  # noqa: F811
    for out in (videos / "out", videos / "deep" / "er"):
        for _ in range(2):
            status, said, _ = run("reconstruct", videos, "--model", model, "-o", out)
            assert status == 0
            assert sum(line.startswith(str(out)) for line in said.splitlines()) == (
                3 if out.name == "out" else 6  # those in out/ are somebody's files by now
            )
    status, _, err = run("reconstruct", videos, "--model", model, "-o", videos)
    assert status == 1
    assert "is read and written" in err
    # Codes are not media, and may lie beside them.
    for _ in range(2):
        assert run("tokenize", videos / "out", "--model", model, "-o", videos / "out")[0] == 0
    assert len(list(videos.rglob("*.codes.safetensors"))) == 3


def test_evaluating_again_continues(run, videos, model):  # noqa: F811
    command = ("evaluate", "--model", model, "--data", videos, "--num_frames", 5, "-o")
    for _ in range(2):
        assert run(*command, videos / "report")[0] == 0
        report = json.loads((videos / "report" / "report.json").read_text())
        assert report["data"]["num_files"] == 3
    status, _, err = run(*command, videos)
    assert status == 1
    assert "is read and written" in err


def trainer(videos, **options):
    defaults = dict(
        num_frames=5, batch_size=1, num_train_steps=1, progress_bar=False, valid_frac=0.4,
        results_folder=str(videos / "run"), checkpoints_folder=str(videos / "states"),
        cache_dir=str(videos / "cache"), num_valid_clips=1,
    )  # fmt: skip
    layers = ("compress_space",)
    tokenizer = VideoTokenizer(**SMALL, layers=layers, use_fsq=True, fsq_levels=(4, 4))
    return VideoTokenizerTrainer(tokenizer, dataset_folder=videos, **(defaults | options))


def test_a_run_does_not_train_on_its_pictures(videos):
    options = dict(image_folder=videos, image_frac=0.5)
    for number in range(3):
        write_image(videos / "pictures" / f"{number}.png", torch.zeros(3, 16, 16))
    first = trainer(videos, **options)
    first.train()
    for folder in ("states", "cache"):
        make_video(videos / folder / "x.mp4", 6, 16, 16)
    assert list((videos / "run").glob("*.mp4"))
    second = trainer(videos, **options)
    assert second.resume("latest")
    for ours, theirs in zip(
        (first.data, first.valid_data, first.images, first.valid_images),
        (second.data, second.valid_data, second.images, second.valid_images),
        strict=True,
    ):
        assert ours.paths == theirs.paths
    with pytest.raises(ValueError, match="is read and written"):
        trainer(videos, results_folder=str(videos))
    # Another command and another run leave it out too.
    assert len(find_media(videos, outputs=[videos / "states", videos / "cache"])) == 3


def test_the_demo_leaves_out_its_folder(videos, monkeypatch, run):  # noqa: F811
    seen = []

    def stop(paths):
        seen.append(sorted(path.name for path in paths))
        raise ValueError("stop")

    monkeypatch.setattr("magvit2_pytorch.evaluation.demo_run.usable_clips", stop)
    touch(videos / "demo", "x.mp4")
    run("demo", "--data", videos, "--output", videos / "demo")
    assert seen == [["0.mp4", "1.mp4", "2.mp4"]]

"""Training on a folder with broken files: they are skipped, counted and named."""

import json
import warnings

import pytest

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.training.tracking import read_log
from tests.data.clip_files import make_audio, make_video


def broken_files(folder):
    whole = make_video(folder / "whole.mp4", num_frames=20).read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes(whole[:200])
    (folder / "text.mp4").write_text("not a video", encoding="utf-8")
    make_audio(folder / "audio.mp4")
    make_video(folder / "short.mp4", num_frames=2)
    return {"empty.mp4", "cut.mp4", "text.mp4", "audio.mp4", "short.mp4"}


def train(folder, **options):
    trainer = VideoTokenizerTrainer(
        VideoTokenizer.from_preset("tiny"),
        dataset_folder=folder / "videos",
        batch_size=2,
        num_frames=5,
        results_folder=str(folder / "results"),
        checkpoints_folder=str(folder / "checkpoints"),
        progress_bar=False,
        **(dict(num_train_steps=10, log_every_step=10) | options),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "split_seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_training_goes_through(tmp_path, split_seed):
    (tmp_path / "videos" / "deep").mkdir(parents=True)
    for number in range(2):
        make_video(tmp_path / "videos" / "deep" / f"{number}.mp4", num_frames=20)
    names = broken_files(tmp_path / "videos")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = train(tmp_path, random_split_seed=split_seed)
    assert trainer.step == 10
    named = [str(w.message) for w in caught if "skipped" in str(w.message)]
    for name in names:
        assert sum(f"/{name}:" in message for message in named) <= 1
    found = {path.rsplit("/", 1)[-1] for path in trainer.data.skipped}
    assert found <= names
    assert len(found) >= 3  # most were met in ten steps
    log = read_log(tmp_path / "results" / "log.jsonl")
    assert log[-2]["skipped_files"] == len(found), json.dumps(log[-2])


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_folder_of_nothing_but_broken_files_is_an_error_before_training(tmp_path):
    (tmp_path / "videos").mkdir()
    names = broken_files(tmp_path / "videos")
    (tmp_path / "videos" / "whole.mp4").unlink()
    with pytest.raises(ValueError, match=f"none of the {len(names) - 1} videos .* can be used"):
        train(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("make", ["missing", "empty", "images"])
def test_a_folder_without_videos_is_an_error_before_training(tmp_path, make):
    if make != "missing":
        (tmp_path / "videos").mkdir()
    if make == "images":
        (tmp_path / "videos" / "a.png").touch()
    with pytest.raises((FileNotFoundError, ValueError), match="videos"):
        train(tmp_path)

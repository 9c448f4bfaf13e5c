"""From a tokenizer to enlarged files: train-sr, upscale, generate --upscale."""

import json
from pathlib import Path

import pytest
import torch

from magvit2_pytorch import SuperResolution
from magvit2_pytorch.generators import build_generator
from magvit2_pytorch.media.images import read_image
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.pipelines.files import upscale_file
from tests.data.clip_files import make_video


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """A run of `train-sr` on two videos."""
    from magvit2_pytorch.cli.main import main

    folder = tmp_path_factory.mktemp("trained")
    (folder / "videos").mkdir()
    for number in range(2):
        make_video(folder / "videos" / f"{number}.mp4", 6, 18, 22, fps=10)
    words = ["train-sr", str(folder / "videos"), "--model", str(model), "-o", str(folder / "sr")]
    small = [
        "--preset",
        "x2-tiny",
        "--batch_size",
        "1",
        "--num_train_steps",
        "2",
        "--crop",
        "16",
        "--short_side",
        "16",
    ]
    assert main([*words, *small, "--minutes", "10", "--device", "cpu"]) == 0
    return folder


def test_a_run_can_be_read_again_and_resumed(trained, run):
    folder = trained / "sr"
    words = ("train-sr", trained / "videos", "-o", folder, "--config", folder / "config.yaml")
    status, out, _ = run(*words, "--resume", "latest", "--num_train_steps", 3)
    assert (status, "Trained 3 steps" in out) == (0, True)
    assert json.loads((folder / "run.json").read_text())
    status, _, err = run(*words)
    assert (status, "--resume latest" in err) == (1, True)


def test_files_and_folders_are_enlarged(trained, clips, run, tmp_path):
    words = ("upscale", clips, "--model", trained / "sr", "-o", tmp_path / "out")
    status, out, err = run(*words, "--tile_size", 8, "--chunk_frames", 4)
    assert (status, "skipped" in err, "44 x 36" in out) == (0, True, True)
    video = VideoFile(tmp_path / "out" / "one.mp4")
    assert (video.num_frames, video.height, video.width, video.fps) == (6, 36, 44, 10)
    assert read_image(tmp_path / "out" / "picture.png", 3).shape == (18, 26, 3)
    assert (tmp_path / "out" / "more" / "two.mp4").exists()


def test_an_enlarged_image_is_what_the_network_makes(trained, clips, tmp_path):
    model = SuperResolution.from_pretrained(trained / "sr" / "upscaler")
    torch.nn.init.normal_(model.network.layer.layers[-1].layers[-1].layers[0].conv.weight, std=0.1)
    assert upscale_file(model, clips / "picture.png", tmp_path / "a.png") == (1, 18, 26)
    image = read_image(clips / "picture.png", 3)[None].movedim(-1, 1) / 127.5 - 1
    wanted = (model(image).clamp(-1, 1)[0].movedim(0, -1) + 1) * 127.5
    shown = read_image(tmp_path / "a.png", 3)
    torch.testing.assert_close(shown.float(), wanted.detach().round(), atol=1, rtol=0)
    assert shown.float().std() > 1


@pytest.mark.parametrize("upscale", [False, True])
def test_films_are_enlarged_while_they_are_written(trained, model, run, tmp_path, upscale):
    generator = build_generator("autoregressive", levels=((2,) * 10,), dim=16, depth=1, heads=2)
    generator.save_pretrained(tmp_path / "gen")
    words = ["generate", "--generator", tmp_path / "gen", "--model", model, "-o", tmp_path / "out"]
    words += ["--frames", 5, "--height", 10, "--width", 12, "--num", 2]
    status, out, _ = run(*words, *(["--upscale", trained / "sr"] if upscale else []))
    height, width = (20, 24) if upscale else (10, 12)
    assert (status, f"{width} x {height}" in out) == (0, True)
    video = VideoFile(tmp_path / "out" / "film-1.mp4")
    assert (video.num_frames, video.height, video.width) == (5, height, width)
    record = json.loads((tmp_path / "out" / "film-1.json").read_text())
    assert record["size"] == [height, width]
    assert record["upscaler"] == (str(trained / "sr") if upscale else None)


def test_memory_does_not_grow_with_the_length(trained, tmp_path, monkeypatch):
    # Counts frames that are read but not written yet.
    model = SuperResolution.from_pretrained(trained / "sr" / "upscaler")
    waiting, most = 0, 0
    from magvit2_pytorch.pipelines import files

    read, written = files._as_video, files._to_bytes

    def count_read(frames, device):
        nonlocal waiting, most
        waiting += len(frames)
        most = max(most, waiting)
        return read(frames, device)

    def count_written(video):
        nonlocal waiting
        waiting -= video.shape[2]
        return written(video)

    monkeypatch.setattr(files, "_as_video", count_read)
    monkeypatch.setattr(files, "_to_bytes", count_written)
    path = make_video(tmp_path / "long.mp4", 30, 16, 16, fps=10)
    inference = files.Inference(chunk_frames=3)
    assert upscale_file(model, path, tmp_path / "out.mp4", inference=inference) == (30, 32, 32)
    assert (waiting, most) == (0, 3)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("upscale", "{clips}", "--model", "no", "-o", "{out}"), "RUN/upscaler"),
        (("upscale", "{clips}", "--model", "{model}", "-o", "{out}"), "cannot use"),
        (("upscale", "{clips}", "--model", "{sr}", "-o", "{out}", "--tile_size", "0"), "tile_size"),
        (("train-sr", "no", "--model", "{model}", "-o", "{out}"), "there is no no"),
        (("train-sr", "{clips}", "--model", "no", "-o", "{out}"), "RUN/tokenizer"),
        (("train-sr", "{clips}", "-o", "{out}"), "tokenizer"),
        (("train-sr", "{clips}", "--model", "{model}", "-o", "{out}", "--minutes", "0"), "above 0"),
        (("train-sr", "{clips}", "--model", "{model}", "-o", "{out}", "--crop", "30"), "crop 30"),
    ],
)  # fmt: skip
def test_mistakes_are_named(words, text, trained, clips, model, run, tmp_path):
    names = dict(model=model, sr=trained / "sr", clips=clips, out=tmp_path / "out")
    status, _, err = run(*(word.format(**names) for word in words))
    assert status in (1, 2)
    assert text in err
    assert not Path(tmp_path / "out").exists()

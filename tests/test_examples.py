"""Every example script runs as its docstring says, on small clips."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from magvit2_pytorch import Tokenizer1d, VideoTokenizer
from magvit2_pytorch.media.video_reader import VideoFile
from tests.data.clip_files import make_video
from tests.tokenizer_1d.narrow import SMALL

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of videos and an untrained tokenizer, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    for number in range(6):
        make_video(tmp_path / "videos" / f"{number}.mp4", num_frames=20)
    VideoTokenizer.from_preset("tiny").save_pretrained("tokenizer")
    return tmp_path


def run(monkeypatch, name, *args):
    monkeypatch.setattr(sys, "argv", [name, *args])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_no_example_is_forgotten():
    tested = Path(__file__).read_text(encoding="utf-8")
    assert [p.name for p in EXAMPLES.glob("*.py") if f'"{p.name}"' not in tested] == []


def test_train(here, monkeypatch, capsys):
    run(monkeypatch, "train.py", "videos", "--preset", "tiny", "--steps", "3", "--output", "new")
    assert "dB on held-out clips" in capsys.readouterr().out
    assert VideoTokenizer.from_pretrained(here / "new").time_factor == 2


def test_own_dataset(here, capsys):
    example = runpy.run_path(str(EXAMPLES / "own_dataset.py"))
    example["main"](num_train_steps=2)
    assert "dB on held-out waves" in capsys.readouterr().out


def test_long_video(here, monkeypatch, capsys):
    run(monkeypatch, "long_video.py", "tokenizer", "videos/0.mp4", "out.mp4")
    source, target = VideoFile("videos/0.mp4"), VideoFile("out.mp4")
    assert target.num_frames == source.num_frames == 20
    assert target.fps == pytest.approx(source.fps)
    tokenizer = VideoTokenizer.from_preset("tiny")
    sides = (side // tokenizer.space_factor for side in (source.height, source.width))
    cells = torch.Size(sides).numel()
    assert f"as {(1 + 10) * cells} codes" in capsys.readouterr().out


def test_generate(here, monkeypatch, capsys):
    arguments = ("tokenizer", "videos", "videos/0.mp4", "out.mp4", "--minutes", "0.001")
    run(monkeypatch, "generate.py", *arguments, "--size", "16", "--num_frames", "21")
    assert "out.mp4: 21 frames" in capsys.readouterr().out
    assert VideoFile("out.mp4").num_frames == 21


@pytest.mark.slow  # tests/evaluation/test_film.py has the same stages, and the README its command
def test_one_film(here, monkeypatch, capsys):
    make_video(here / "film.mp4", num_frames=40, height=32, width=48)
    arguments = ("film.mp4", "out", "--minutes", "0.001", "--preset", "tiny", "--size", "16")
    run(monkeypatch, "one_film.py", *arguments, "--seconds", "0.1")
    said = capsys.readouterr().out
    assert "0.00 s: 40 frames, shot" in said
    assert said.endswith("out/film.md\n")
    assert len(list((here / "out" / "scenes").glob("*-x2.mp4"))) == 2


def test_any_number_of_tokens(here, monkeypatch, capsys):
    Tokenizer1d(**SMALL).save_pretrained("tokens")
    run(monkeypatch, "any_number_of_tokens.py", "tokens", "videos", "--total", "20")
    said = capsys.readouterr().out
    assert "the first 6 of 16 tokens" in said
    assert said.count("tokens of 20") == 4

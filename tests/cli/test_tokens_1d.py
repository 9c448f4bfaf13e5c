"""The commands with a 1-D tokenizer, from training to a decoded video."""

import pytest
import torch

from magvit2_pytorch import Tokenizer1d
from magvit2_pytorch.codes.code_file import read_codes
from magvit2_pytorch.media.video_reader import VideoFile
from tests.data.clip_files import make_video
from tests.tokenizer_1d.narrow import SMALL

MODEL = [
    f"--model.{name}={value}"
    for name, value in SMALL.items()
    if name.endswith(("dim", "depth", "heads", "size", "frames"))
]
TRAINING = (
    "--num_train_steps=1", "--pack_length=100", "--min_side=16", "--num_valid_clips=1",
    "--progress_bar=false", "--precision=fp32", "--model.num_tokens=[2, 16]",
    "--model.quantizer={name: fsq, levels: [7, 5, 5]}",
)  # fmt: skip


@pytest.fixture(scope="module")
def model_1d(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer-1d")
    torch.manual_seed(0)
    Tokenizer1d(**SMALL).save_pretrained(folder)
    return folder


def test_training_by_preset(run, tmp_path, model_1d):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a", "b"):
        make_video(data / f"{name}.mp4", 9, 32, 32)
    out = tmp_path / "run"
    words = ("train", data, "-o", out, "--preset", "tiny-1d", "--init_from", model_1d)
    status, said, _ = run(*words, *MODEL, *TRAINING)
    assert status == 0
    assert "Trained 1 steps" in said
    tokenizer, start = (Tokenizer1d.from_pretrained(f) for f in (out / "tokenizer", model_1d))
    assert tokenizer.config == start.config
    moved = [
        float((ours - theirs).detach().abs().max())
        for ours, theirs in zip(tokenizer.parameters(), start.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 0.1
    assert "pack_length: 100" in (out / "config.yaml").read_text()


def test_files_there_and_back(run, tmp_path, clips, model_1d):
    codes = tmp_path / "codes"
    status, said, _ = run("tokenize", clips, "--model", model_1d, "-o", codes, "--num_tokens", 5)
    assert status == 0
    assert "to 5 codes" in said
    stored, video = read_codes(codes / "one.codes.safetensors")
    assert stored.shape == (5,)
    assert video.header.num_tokens == 5
    _, said, _ = run("tokenize", clips, "--model", model_1d, "-o", codes, "--num_tokens", 5)
    assert "already there" in said
    _, said, _ = run("tokenize", clips, "--model", model_1d, "-o", codes, "--num_tokens", 6)
    assert "already there" not in said
    out = tmp_path / "decoded"
    status, _, _ = run("decode", codes, "--model", model_1d, "-o", out, "--num_tokens", 3)
    assert status == 0
    file = VideoFile(out / "one.mp4")
    assert (file.num_frames, file.height, file.width) == (6, 18, 22)
    status, _, _ = run(
        "reconstruct", clips / "one.mp4", "--model", model_1d, "-o", tmp_path / "a.mp4"
    )
    assert status == 0


def test_what_is_said_of_it(run, tmp_path, clips, model_1d):
    _, said, _ = run("info", model_1d)
    assert "1-D tokenizer" in said
    _, said, _ = run("info", "--preset", "tiny-1d")
    assert "3,420,613" in said
    status, _, error = run("export", model_1d, "-o", tmp_path / "programs")
    assert status == 1
    assert "cannot be exported" in error
    status, _, error = run(
        "tokenize", clips, "--model", model_1d, "-o", tmp_path / "c", "--num_tokens", "psnr:20"
    )
    assert status == 1
    assert "give a number" in error

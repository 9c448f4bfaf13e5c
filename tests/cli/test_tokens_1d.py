"""The commands with a 1-D tokenizer, from training to a decoded video."""

import json

import pytest
import torch

from magvit2_pytorch import Tokenizer1d
from magvit2_pytorch.cli.main import main
from magvit2_pytorch.codes.code_file import read_codes
from magvit2_pytorch.media.frames import to_float
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.metrics import psnr
from magvit2_pytorch.pipelines import generation
from tests.data.clip_files import make_video
from tests.tokenizer_1d.narrow import KINDS, SMALL

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


@pytest.mark.parametrize("freeze", ["false", "true"])
def test_training_by_preset(run, tmp_path, model_1d, freeze):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a", "b"):
        make_video(data / f"{name}.mp4", 9, 32, 32)
    out = tmp_path / "run"
    words = ("train", data, "-o", out, "--preset", "tiny-1d", "--init_from", model_1d)
    status, said, err = run(*words, *MODEL, *TRAINING, "--freeze_encoder", freeze)
    assert status == 0, err
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


@pytest.fixture(scope="module", params=["blocks", pytest.param("anchored", marks=pytest.mark.slow)])
def tokens(request, tmp_path_factory):
    """A tokenizer, a video, its codes with four tokens in a part, and a generator of them."""
    folder = tmp_path_factory.mktemp(f"tokens-{request.param}")
    torch.manual_seed(0)
    Tokenizer1d(**SMALL, **KINDS[request.param]).save_pretrained(folder / "tokenizer")
    make_video(folder / "film.mp4", 77, 16, 24, fps=10)
    tokenize = ("tokenize", "film.mp4", "--model", "tokenizer", "--views", "flip")
    words = [*tokenize, "-o", "codes", "--num_tokens", "4"]
    paths = {"film.mp4", "tokenizer", "codes", "gen"}
    small = ["--model.dim=16", "--model.depth=1", "--model.heads=2", "--num_train_steps=2"]
    for command in (words, ["train-generator", "codes", "-o", "gen", *small]):
        assert main([str(folder / word) if word in paths else word for word in command]) == 0
    return folder


def test_films_of_tokens(run, tokens, tmp_path, monkeypatch):
    prompts, continued = [], generation.continued_codes

    def noted(model, prompt, *options):
        prompts.append(tuple(prompt.shape))
        return continued(model, prompt, *options)

    monkeypatch.setattr(generation, "continued_codes", noted)
    config = json.loads((tokens / "gen" / "generator" / "config.json").read_text("utf-8"))
    assert (config["num_tokens"], config["grid"]) == (4, [1, 4])
    words = ("generate", "--generator", tokens / "gen", "--model", tokens / "tokenizer")
    size = ("--height", 20, "--width", 26, "--frames", 19)
    assert run(*words, "-o", tmp_path / "new", *size, "--num_tokens", 2)[0] == 0
    file = VideoFile(tmp_path / "new" / "film-0.mp4")
    assert (file.num_frames, file.height, file.width) == (19, 20, 26)
    prompt = ("--prompt", tokens / "film.mp4", "--frames", 21, "--num", 2)
    assert run(*words, "-o", tmp_path / "continued", *prompt)[0] == 0
    assert VideoFile(tmp_path / "continued" / "film-1.mp4").num_frames == 21
    record = json.loads((tmp_path / "continued" / "film-1.json").read_text("utf-8"))
    assert (record["prompt_frames"], record["num_tokens"]) == (16, None)
    part = Tokenizer1d.from_pretrained(tokens / "tokenizer").time_factor
    assert prompts == [(1, 0, 1, 4), (1, 16 // part, 1, 4)]


def test_mistakes_with_films_of_tokens(run, tokens, model, tmp_path):
    words = ("generate", "--generator", tokens / "gen", "-o", tmp_path / "out")
    status, _, error = run(*words, "--model", model)
    assert (status, "trained on 1-D tokens" in error) == (1, True)
    short = ("--prompt", tokens / "film.mp4", "--prompt_frames", 3)
    status, _, error = run(*words, "--model", tokens / "tokenizer", *short)
    assert (status, "shorter than a part" in error) == (1, True)
    more = ("tokenize", tokens / "film.mp4", "--model", tokens / "tokenizer")
    mixed = tmp_path / "mixed"
    for count in (4, 5):
        target = mixed / f"{count}.codes.safetensors"
        assert run(*more, "-o", target, "--num_tokens", count)[0] == 0
    status, _, error = run("train-generator", mixed, "-o", tmp_path / "gen")
    assert (status, "the same --num_tokens" in error) == (1, True)
    status, _, error = run(
        "train-generator", tokens / "codes", "-o", tmp_path / "gen", "--preset", "masked-tiny"
    )
    assert (status, "use an autoregressive one" in error) == (1, True)


def test_predictions_of_tokens_are_compared_with_the_film(run, tokens, tmp_path):
    words = ("evaluate-generator", tokens / "codes", "--generator", tokens / "gen", "--model")
    more = ("-o", tmp_path / "report", "--data", tokens / "film.mp4")
    status, _, error = run(*words, tokens / "tokenizer", *more)
    assert status == 0, error
    report = json.loads((tmp_path / "report" / "report.json").read_text("utf-8"))
    row = next(row for row in report["videos"] if "@" not in row["video"])
    tokenizer = Tokenizer1d.from_pretrained(tokens / "tokenizer").eval()
    part, codes = tokenizer.time_factor, read_codes(tokens / "codes" / row["video"])[0]
    whole = 77 // part
    assert row["pixels_of_a_code"] == part * 16 * 24 / 4
    assert row["num_codes"] == 4 * row["held_out_latents"]
    video = to_float(VideoFile(tokens / "film.mp4").read(range(whole * part)))[None]
    decoded = tokenizer.decode_stream((16, 24)).push(
        codes[None, : 4 * whole].unflatten(1, (-1, 1, 4))
    )
    start = (whole - row["held_out_latents"]) * part
    for number, value in enumerate(row["prediction"]["ceiling"]):
        frames = slice(start + number * part, start + (number + 1) * part)
        expected = float(psnr(decoded[:, :, frames], video[:, :, frames]))
        assert value == pytest.approx(expected, abs=1e-3)

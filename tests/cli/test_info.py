"""info: what a file or folder is, for people and for programs."""

import json

import pytest
import torch

from magvit2_pytorch import VideoTokenizer


def test_a_tokenizer(run, model):
    status, out, _ = run("info", model)
    assert status == 0
    for words in ("parameters", "bits_per_pixel", "codebook_size       1,024", "compress_space"):
        assert words in out
    about = json.loads(run("info", model, "--json")[1])
    assert about["codebook_size"] == 1024
    assert about["config"]["image_size"] == 16
    preset = json.loads(run("info", "--preset", "tiny", "--json")[1])
    assert preset == {k: v for k, v in about.items() if k != "fingerprint"}


def test_latents_of_a_continuous_tokenizer(run, tmp_path):
    tokenizer = VideoTokenizer.from_preset("tiny", codebook_size=None, continuous_dim=2)
    tokenizer.save_pretrained(tmp_path)
    assert "latent_statistics   not measured" in run("info", tmp_path)[1]
    tokenizer.quantizer.store_statistics(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25]), 7)
    tokenizer.save_pretrained(tmp_path)
    lines = run("info", tmp_path)[1].splitlines()
    start = lines.index("latent_statistics")
    rows = [line.split() for line in lines[start + 1 : start + 5]]
    head = [["num_latents", "7"], ["channel", "mean", "std"]]
    assert rows == [*head, ["0", "0.5", "2"], ["1", "-1", "0.25"]]


def test_files(run, tmp_path, model, clips):
    codes = tmp_path / "one.codes.safetensors"
    run("tokenize", clips / "one.mp4", "--model", model, "-o", codes)
    about = json.loads(run("info", codes, "--json")[1])
    assert (about["kind"], about["of"], about["num_codes"]) == ("codes", "video", 4 * 5 * 6)
    assert about["fps"] == pytest.approx(10, rel=1e-3)
    assert about["bits_per_pixel"] == pytest.approx(10 * 120 / (6 * 18 * 22))
    assert json.loads(run("info", clips / "one.mp4", "--json")[1])["num_frames"] == 6
    assert "image" in run("info", clips / "picture.png")[1]


@pytest.mark.parametrize("name", ["none", "notes.txt", "broken.mp4", "."])
def test_what_nobody_can_describe(run, clips, name):
    status, out, err = run("info", clips / name)
    assert (status, out) == (1, "")
    assert err.startswith("magvit2: error: ")
    assert err.count("\n") == 1

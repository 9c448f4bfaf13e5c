"""The benchmark of rate and distortion: its curves, and a small run of all of it."""

import json
import math
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from video_codecs import CODECS

from magvit2_pytorch.codes.entropy_coding import compress
from magvit2_pytorch.generators.compression import HEADER
from magvit2_pytorch.media.video_writer import write_video
from magvit2_pytorch.pipelines.fingerprint import TokenizerId
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from tests.conftest import build
from tests.evaluation.test_codecs import clip
from tests.generators.models import generator

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "rate_distortion.py"


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as context:
        context.syspath_prepend(SCRIPT.parent)  # as for a script that is run
        return runpy.run_path(str(SCRIPT))


@pytest.fixture
def curve(benchmark):
    """Doubling the rate gives 3 dB more; in no order."""
    point = benchmark["Point"]
    rates = (0.4, 0.1, 0.2)
    return [point("a", i, rate, {"PSNR": 30 + 3 * math.log2(rate)}) for i, rate in enumerate(rates)]


def test_curves_are_read_between_their_points(benchmark, curve):
    for rate in (0.1, 0.13, 0.2, 0.31, 0.4):
        value = 30 + 3 * math.log2(rate)
        assert benchmark["value_at"](curve, rate, "PSNR") == pytest.approx(value)
        assert benchmark["rate_at"](curve, value, "PSNR") == pytest.approx(rate)


def test_curves_are_not_read_beyond_their_ends(benchmark, curve):
    for rate in (0.09, 0.41):
        assert benchmark["value_at"](curve, rate, "PSNR") is None
        assert benchmark["rate_at"](curve, 30 + 3 * math.log2(rate), "PSNR") is None


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return build("residual", "compress_space", "compress_time", quantizer="fsq")


def saved(tokenizer, folder, kind="autoregressive"):
    """Folder of a generator of its codes with random weights."""
    fingerprint = TokenizerId.of(tokenizer).fingerprint
    levels = (tokenizer.quantizer.digit_levels,)
    options = dict(dtype=torch.float32, tokenizer_fingerprint=fingerprint)
    generator(kind, levels, **options).save_pretrained(folder)
    return folder


def test_a_generator_codes_the_same_clip_in_its_exact_bits(benchmark, tokenizer, tmp_path):
    frames = clip(5, 16, 24)
    plain, two = benchmark["tokenizer_bits"](tokenizer, frames)
    model = benchmark["generator_of"](tokenizer, [saved(tokenizer, tmp_path)])
    recon, three = benchmark["tokenizer_bits"](tokenizer, frames, model)
    assert torch.equal(recon, plain)
    assert two == {kind: three[kind] for kind in benchmark["KINDS"][:2]}
    codes = tokenizer.tokenize(benchmark["to_float"](frames)[None])
    exact = float(model.bits(codes)[0].sum())
    # A header and up to two words at the end.
    coded = three["coded by the generator"] - 8 * HEADER.size
    assert exact <= coded <= exact * 1.001 + 64


def test_generators_of_other_codes_do_not_count(benchmark, tokenizer, tmp_path):
    torch.manual_seed(1)
    other = build("residual", "compress_space", "compress_time", quantizer="fsq")
    folders = [saved(other, tmp_path / "other"), saved(tokenizer, tmp_path / "own")]
    fingerprint = TokenizerId.of(tokenizer).fingerprint
    find = benchmark["generator_of"]
    assert find(tokenizer, folders).config.tokenizer_fingerprint == fingerprint
    assert find(tokenizer, folders[:1]) is None
    with pytest.raises(ValueError, match="give an autoregressive generator"):
        find(tokenizer, [saved(tokenizer, tmp_path / "masked", "masked")])


@pytest.mark.slow
def test_the_whole_benchmark_on_a_small_clip(benchmark, tmp_path, monkeypatch):
    few = {name: replace(CODECS[name], qualities=(20, 45)) for name in ("H.264", "H.265")}
    whole = benchmark["main"].__globals__
    monkeypatch.setitem(whole, "available_codecs", lambda: few)
    monkeypatch.setenv("SVT_LOG", "1")
    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    # Encoded once: x264 does not write the same bits twice everywhere.
    write_video(paths[0], clip(5, 64, 64), fps=25)
    shutil.copy(*paths)
    tokenizer = VideoTokenizer.from_preset("tiny")
    model = tmp_path / "trained" / "tokenizer"
    tokenizer.save_pretrained(model)
    words = ["--model", model, "--data", *paths, "--frames", 3, "-o", tmp_path / "out"]
    words += ["--generator", saved(tokenizer, tmp_path / "generator")]
    monkeypatch.setattr(sys, "argv", ["rate_distortion.py", *map(str, words)])
    benchmark["main"]()

    found = json.loads((tmp_path / "out" / "curves.json").read_text("utf-8"))
    assert set(found["codecs"]) == set(few)
    assert found["codecs_missing"] == sorted(set(CODECS) - set(few))
    codes = tokenizer.tokenize(benchmark["to_float"](benchmark["last_frames"](paths[0], 3))[None])
    num_bytes = len(compress(codes[0], tokenizer.quantizer))
    for made in found["clips"]:
        assert (made["num_frames"], made["height"], made["width"]) == (3, 128, 128)
        ours, coded, generated, *others = made["points"]
        assert generated["series"] == "trained, coded by the generator"
        assert generated["values"] == ours["values"]
        assert ours["series"] == "trained, fixed length"
        bits = codes.numel() * math.log2(tokenizer.codebook_size)
        assert ours["bits_per_pixel"] == pytest.approx(bits / (3 * 128 * 128))
        assert coded["series"] == "trained, entropy coded"
        assert coded["bits_per_pixel"] == pytest.approx(num_bytes * 8 / (3 * 128 * 128))
        assert coded["values"] == ours["values"]
        assert [(p["series"], p["quality"]) for p in others] == [
            (name, quality) for name in few for quality in (20, 45)
        ]
        assert set(ours["values"]) == {"PSNR", "SSIM"} == set(made["ceilings"])
        assert others[0]["values"]["PSNR"] < made["ceilings"]["PSNR"]
    text = (tmp_path / "out" / "table.md").read_text("utf-8")
    assert text.count("| mean | trained, fixed length |") == 2
    for name in ("curves.png", "a.png", "b.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000

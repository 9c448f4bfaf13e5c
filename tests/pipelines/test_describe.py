"""Descriptions say what is there, and are JSON."""

import json

import pytest
import torch

from magvit2_pytorch.media.images import write_image
from magvit2_pytorch.pipelines.tokenizer_info import describe_file, describe_preset, tokenizer_info
from magvit2_pytorch.tokenizer.presets import preset
from tests.conftest import EVERY_PRESET, QUANTIZERS, build
from tests.evaluation.clips import clip


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_layers_hold_all_parameters(quantizer):
    tokenizer = build("residual", "compress_space", ("attend_time", 3), quantizer=quantizer)
    about = json.loads(json.dumps(tokenizer_info(tokenizer)))
    names = [row["layer"] for row in about["layers"]]
    assert names == ["pixels", "residual", "compress_space", "attend_time 3", "latents"]
    for tower in ("encoder", "decoder"):
        key = f"{tower}_parameters"
        parameters = sum(p.numel() for p in getattr(tokenizer, tower).parameters())
        assert sum(row[key] for row in about["layers"]) == about[key] == parameters
    assert about["parameters"] == sum(p.numel() for p in tokenizer.parameters())
    assert [row["pixels"] for row in about["layers"]] == [1, 1, 2, 2, 2]
    # A layer stands in one row in both towers.
    block = tokenizer.encoder.layers[2]
    assert about["layers"][2]["encoder_parameters"] == sum(p.numel() for p in block.parameters())
    block = tokenizer.decoder.layers[2]
    assert about["layers"][2]["decoder_parameters"] == sum(p.numel() for p in block.parameters())


@pytest.mark.parametrize("name", EVERY_PRESET)
def test_presets_are_described_without_being_built(name):
    about = describe_preset(preset(name))
    assert about["parameters"] > 0
    assert about["config"]["layers"]
    json.dumps(about)


def test_media_are_described(tmp_path):
    about = describe_file(clip(tmp_path, 5, 18, 22, fps=10))
    assert about["fps"] == pytest.approx(10, rel=1e-3)
    assert about["duration_s"] == pytest.approx(0.5, rel=0.01)
    assert (about["kind"], about["num_frames"], about["height"]) == ("video", 5, 18)
    write_image(tmp_path / "x.png", torch.zeros(4, 6, 3, dtype=torch.uint8))
    assert describe_file(tmp_path / "x.png") == {"kind": "image", "height": 4, "width": 6}


def test_continuous_latents_are_described_once_they_are_measured():
    tokenizer = build("residual", quantizer="continuous")
    assert tokenizer_info(tokenizer)["latent_statistics"] == "not measured"
    mean, std = torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([1.0, 0.25, 3.0, 0.5])
    tokenizer.quantizer.store_statistics(mean, std, 12)
    about = json.loads(json.dumps(tokenizer_info(tokenizer)["latent_statistics"]))
    assert about["num_latents"] == 12
    assert about["channels"][1] == {"channel": 1, "mean": -1.0, "std": 0.25}
    assert [row["std"] for row in about["channels"]] == std.tolist()
    assert "latent_statistics" not in tokenizer_info(build("residual"))

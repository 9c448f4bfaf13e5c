"""An evaluation of a 1-D tokenizer: a row for each number of tokens, and a curve."""

import json

import pytest
import torch

from magvit2_pytorch.evaluation.evaluator import Evaluation
from magvit2_pytorch.media.frames import to_float
from magvit2_pytorch.media.images import read_image
from magvit2_pytorch.metrics.quality import psnr
from magvit2_pytorch.pipelines.inference import Inference
from tests.data.clip_files import make_video
from tests.evaluation.reports import CHOICE
from tests.pipelines.test_files import read_all
from tests.tokenizer_1d.narrow import narrow


def test_a_row_for_each_number_of_tokens(tmp_path):
    tokenizer, data = narrow(), tmp_path / "data"
    data.mkdir()
    make_video(data / "a.mkv", 10, 18, 22, codec="ffv1")
    inference = Inference(num_tokens=3)
    report = Evaluation(tokenizer, data, CHOICE, inference=inference).run(tmp_path / "report")
    clips = to_float(read_all(data / "a.mkv"))[None].double().split(5, dim=2)
    rows = report["videos"]["by_tokens"]
    assert [row["num_tokens"] for row in rows] == [2, 4, 8, 16]
    for row in rows:
        count = row["num_tokens"]
        recons = [tokenizer(clip, num_tokens=count).detach().float() for clip in clips]
        pairs = zip(recons, clips, strict=True)
        wanted = sum(float(psnr(recon, clip.float())) for recon, clip in pairs) / 2
        assert row["psnr"] == pytest.approx(wanted, abs=1e-3)
        bits = count * torch.tensor(float(tokenizer.codebook_size)).log2() / (5 * 18 * 22)
        assert row["bits_per_pixel"] == pytest.approx(float(bits), rel=1e-5)
    assert report["videos"]["metrics"]["tokens"]["mean"] == 3
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"| 16 | {rows[-1]['psnr']:.2f} |" in text
    assert "![PSNR over tokens of the videos](videos-tokens.png)" in text
    assert read_image(tmp_path / "report" / "videos-tokens.png").shape[-1] == 3
    line = json.loads((tmp_path / "report" / "clips.jsonl").read_text().splitlines()[1])
    assert list(line["by_tokens"]) == ["2", "4", "8", "16"]

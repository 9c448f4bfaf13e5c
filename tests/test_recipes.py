"""The recipes' README and the benchmark that measures them."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from magvit2_pytorch.quantizers import build_quantizer
from magvit2_pytorch.tokenizer.presets import PRESETS, preset, recipe
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig
from tests.data.clip_files import make_video

ROOT = Path(__file__).parents[1]
README = ROOT / "examples" / "recipes" / "README.md"
RESULTS = json.loads((ROOT / "benchmarks" / "recipes.json").read_text(encoding="utf-8"))


@pytest.fixture
def benchmark(monkeypatch):
    """`benchmarks/recipes.py`."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import recipes

    return recipes


def test_the_readme_tells_what_is_in_the_files(benchmark):
    lines = README.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:3] == "| `"]
    found = {cells[0].strip("`"): cells[3:] for cells in rows if len(cells) == 7}
    expected = {}
    for name in PRESETS:
        config = TokenizerConfig.from_dict(preset(name))
        with torch.device("meta"):
            bits = build_quantizer(**config.quantizer_options).bits_per_position
        # As in the comment of the file, which test_presets compares with the model.
        (millions,) = re.findall(r"([\d.]+ M) parameters", PRESETS[name].read_text("utf-8"))
        pixels = config.time_factor * config.space_factor**2
        options = benchmark.training_options(name)
        expected[name] = [
            str(options["num_train_steps"]),
            str(options["batch_size"]),
            millions,
            "continuous" if bits is None else f"{bits / pixels:.4f}",
        ]
    assert found == expected


def test_the_readme_shows_what_was_measured(benchmark):
    text = README.read_text(encoding="utf-8")
    assert f"{benchmark.BEGIN}\n{benchmark.table()}\n{benchmark.END}" in text


def test_presets_were_measured():
    assert set(RESULTS) <= set(PRESETS)


@pytest.mark.parametrize("name", RESULTS)
def test_what_was_measured_is_of_this_recipe(benchmark, name):
    found, options = RESULTS[name], benchmark.training_options(name)
    assert set(found) <= {"curve", "step"}
    if curve := found.get("curve"):
        steps, seconds, decibels = zip(*curve["points"], strict=True)
        assert list(steps) == sorted(set(steps))
        assert list(seconds) == sorted(seconds)
        assert steps[-1] == options["num_train_steps"]
        asked = options.get("precision", "fp32")
        assert curve["precision"] in (("fp32", "bf16") if asked == "auto" else (asked,))
        mean = sum(curve["psnr_db"].values()) / len(curve["psnr_db"])
        assert decibels[-1] == pytest.approx(mean, abs=0.01)


@pytest.fixture
def few(benchmark, tmp_path, monkeypatch):
    """That benchmark, with a short recipe of `tiny`, and one small video."""
    import demo_training

    make_video(tmp_path / "video.mp4", num_frames=43, height=16, width=24)
    monkeypatch.setattr(demo_training, "demo_clips", lambda: [tmp_path / "video.mp4"])
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "recipes.json")
    monkeypatch.setattr(benchmark, "README", tmp_path / "README.md")
    monkeypatch.setitem(benchmark.NUM_TRAIN_STEPS, "tiny", 2)
    write_tiny(tmp_path, monkeypatch, preset("tiny"), dict(batch_size=2, num_frames=3))
    (tmp_path / "README.md").write_text(f"a\n{benchmark.BEGIN}\nold\n{benchmark.END}\nz\n", "utf-8")
    return benchmark


def write_tiny(tmp_path, monkeypatch, model, training):
    """Puts another file in place of the preset `tiny`."""
    text = json.dumps({"model": model, "training": recipe("tiny") | training})
    (tmp_path / "tiny.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setitem(PRESETS._entries, "tiny", tmp_path / "tiny.yaml")


def test_a_step_and_a_curve_are_written_and_told(few, tmp_path):
    few.measure_step("tiny", batch_size=1, checkpoint_activations=False)
    few.measure_curve("tiny", tmp_path / "runs")
    few.write_table()
    found = json.loads((tmp_path / "recipes.json").read_text(encoding="utf-8"))["tiny"]
    assert found["step"]["batch_size"] == 1
    assert found["step"]["seconds"] > 0
    assert [point[0] for point in found["curve"]["points"]] == [1, 2]
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"a\n{few.BEGIN}\n| preset |")
    assert readme.endswith(f"\n{few.END}\nz\n")
    (row,) = [line for line in readme.splitlines() if line.startswith("| `tiny` |")]
    assert f"{found['curve']['points'][-1][2]:.2f} dB after 2 steps" in row
    assert f"{found['step']['seconds']:.3g} s" in row
    assert "| `small` | not measured |" in readme


def test_a_step_of_images_with_a_discriminator(few, tmp_path, monkeypatch):
    model = preset("tiny") | dict(layers=["residual", "compress_space", "compress_space"])
    write_tiny(tmp_path, monkeypatch, model, dict(frame_adversarial_weight=0.1))
    few.measure_step("tiny", batch_size=2, checkpoint_activations=True, num_steps=1)
    step = json.loads((tmp_path / "recipes.json").read_text(encoding="utf-8"))["tiny"]["step"]
    assert step["discriminator_parameters"] > 0
    assert (step["timed_steps"], step["checkpoint_activations"]) == (1, True)


def test_too_little_memory_is_a_result_and_a_mistake_is_none(few, tmp_path, monkeypatch):
    words = ["recipes.py", "step", "tiny"]
    stub = tmp_path / "stub.py"
    monkeypatch.setattr(few, "__file__", str(stub))
    monkeypatch.setattr(sys, "argv", words)
    stub.write_text("raise RuntimeError('DefaultCPUAllocator: not enough memory')", "utf-8")
    few.main()
    assert "does not fit in" in (tmp_path / "README.md").read_text(encoding="utf-8")
    stub.write_text("raise ValueError('something else')", encoding="utf-8")
    with pytest.raises(RuntimeError, match="something else"):
        few.main()


def test_durations_read_as_people_say_them(benchmark):
    said = [benchmark.duration(x) for x in (59, 90, 3600, 86400 * 3, 365 * 86400 * 2)]
    assert said == ["59 seconds", "1.5 minutes", "1.0 hours", "3.0 days", "2.0 years"]

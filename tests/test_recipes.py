"""The files in examples/recipes: what the command line makes of them, what their README says."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.cli.main import main
from magvit2_pytorch.tokenizer.presets import PRESETS, preset
from magvit2_pytorch.training.recipes import recipe
from magvit2_pytorch.training.training_config import TrainingConfig
from tests.data.clip_files import make_video

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "recipes"
NAMES = tuple(PRESETS)


@pytest.fixture
def benchmark(monkeypatch):
    """`benchmarks/recipes.py`."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import recipes

    return recipes


def said(name: str) -> dict:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def test_every_preset_has_its_file():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(NAMES)
    assert {path.stem for path in FOLDER.glob("*.json")} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_all_of_the_recipe_and_how_long(name):
    more = {"preset", "num_train_steps"} | ({"type"} if "image" in name else {"num_frames"})
    assert set(said(name)) == set(recipe(name)) | more


@pytest.mark.parametrize("name", NAMES)
def test_the_command_in_its_head_trains_the_preset_by_its_recipe(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    head = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    (command,) = re.findall("^# (magvit2 train .*)$", head, flags=re.MULTILINE)
    assert main([*shlex.split(command)[1:], "--print_config"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["preset"] == name
    assert values["type"] == ("images" if "image" in name else "videos")
    assert Path(values["output"]) == Path("runs", name)
    plain = json.loads(json.dumps(preset(name)))
    assert {key: values["model"][key] for key in plain} == plain
    steps = dict(num_train_steps=said(name)["num_train_steps"])
    training = TrainingConfig(**(steps | recipe(name))).to_dict()
    del training["results_folder"], training["checkpoints_folder"]
    assert {key: values[key] for key in training} == training


def test_stage_two_starts_from_what_stage_one_writes():
    for stage_1, stage_2 in (("o2-image", "o2"), ("o2-image-small", "o2-small")):
        first, second = ((FOLDER / f"{n}.yaml").read_text("utf-8") for n in (stage_1, stage_2))
        (output,) = re.findall(r"^# magvit2 .*-o (\S+)", first, flags=re.MULTILINE)
        assert f"--init_from {output}\n" in second


def test_the_readme_tells_what_is_in_the_files():
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:3] == "| `"]
    found = {cells[0].strip("`"): cells[3:] for cells in rows if len(cells) == 7}
    expected = {}
    for name in NAMES:
        with torch.device("meta"):
            tokenizer = VideoTokenizer.from_preset(name)
        millions = sum(p.numel() for p in tokenizer.parameters()) / 1e6
        bits = tokenizer.bits_per_pixel
        file = said(name)
        expected[name] = [
            str(file["num_train_steps"]),
            str(file["batch_size"]),
            f"{millions:.1f} M",
            "continuous" if bits is None else f"{bits:.4f}",
        ]
    assert found == expected


def test_the_readme_shows_what_was_measured(benchmark):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{benchmark.BEGIN}\n{benchmark.table()}\n{benchmark.END}" in text


@pytest.mark.parametrize("path", FOLDER.glob("*.json"), ids=lambda path: path.stem)
def test_what_was_measured_is_of_this_recipe(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found.pop("preset") == path.stem
    assert set(found) <= {"curve", "step"}
    if curve := found.get("curve"):
        steps, seconds, decibels = zip(*curve["points"], strict=True)
        assert list(steps) == sorted(set(steps))
        assert list(seconds) == sorted(seconds)
        assert steps[-1] == said(path.stem)["num_train_steps"]
        assert curve["precision"] == said(path.stem).get("precision", "fp32")
        mean = sum(curve["psnr_db"].values()) / len(curve["psnr_db"])
        assert decibels[-1] == pytest.approx(mean, abs=0.01)


@pytest.fixture
def few(benchmark, tmp_path, monkeypatch):
    """That benchmark, with a short recipe of `tiny` in a folder of its own, and one small video."""
    import demo_training

    make_video(tmp_path / "video.mp4", num_frames=43, height=16, width=24)
    monkeypatch.setattr(demo_training, "demo_clips", lambda: [tmp_path / "video.mp4"])
    monkeypatch.setattr(benchmark, "FOLDER", tmp_path)
    file = said("tiny") | dict(num_train_steps=2, batch_size=2, num_frames=3)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(file), encoding="utf-8")
    (tmp_path / "README.md").write_text(f"a\n{benchmark.BEGIN}\nold\n{benchmark.END}\nz\n", "utf-8")
    return benchmark


def test_a_step_and_a_curve_are_written_and_told(few, tmp_path):
    few.measure_step("tiny", batch_size=1, checkpoint_activations=False)
    few.measure_curve("tiny", tmp_path / "runs")
    few.write_table()
    found = json.loads((tmp_path / "tiny.json").read_text(encoding="utf-8"))
    assert found["preset"] == "tiny"
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


def test_a_step_of_images_with_a_discriminator(few, tmp_path):
    file = {k: v for k, v in said("tiny").items() if k != "num_frames"}
    file |= dict(type="images", frame_adversarial_weight=0.1)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(file), encoding="utf-8")
    few.measure_step("tiny", batch_size=2, checkpoint_activations=True, num_steps=1)
    step = json.loads((tmp_path / "tiny.json").read_text(encoding="utf-8"))["step"]
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

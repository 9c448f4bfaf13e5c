"""The command for a borrowed GPU, shortened and on a CPU, so that it works on the day."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COLUMNS = {
    "peaks": {"precision", "matrix product", "conv"},
    "agreement": {"model", "precision", "codes the same", "decoded, dB"},
    "speed": {"model", "task", "first call, s", "ms", "frames/s", "TFLOP/s"},
    "tiles": {"model", "size", "tile", "task", "ms", "frames/s"},
    "compiled": {"model", "task", "first call, s", "ms", "frames/s", "TFLOP/s"},
}


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return __import__("gpu")


@pytest.fixture
def bench(gpu, tmp_path):
    deadline = time.monotonic() + 600
    return gpu.Bench(torch.device("cpu"), deadline, True, tmp_path / "part.json")


LONG = ("compiled", "training", "tiles", "speed")
SLOW = [pytest.param(part, marks=pytest.mark.slow) for part in LONG]
FAST = [part for part in COLUMNS if part not in LONG]


@pytest.mark.filterwarnings("default")  # as in a process of its own
@pytest.mark.parametrize("part", [*FAST, *SLOW])
def test_every_row_of_a_part_has_figures(gpu, bench, part):
    getattr(gpu.gpu_parts, part)(bench)
    assert bench.rows
    assert json.loads(bench.path.read_text()) == bench.rows
    for row in bench.rows:
        assert "skipped" not in row, row
        assert COLUMNS.get(part, {"steps", "steps/s", "held-out dB"}) <= set(row)
    if part == "agreement":  # the CPU beside itself
        assert bench.rows[0]["codes the same"] == "100.000%"


def test_operations_of_a_network_are_those_it_computes(gpu, bench):
    """Counted without values, and counted while computing."""
    from torch.utils.flop_counter import FlopCounterMode

    tokenizer = gpu.gpu_parts.build("tiny", "cpu")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tokenizer.encode(bench.video(5, 16, 32))
    flops = gpu.gpu_parts.flops_of("tiny", 5, 16, 32)
    assert flops["encode"] == counter.get_total_flops() > 0
    assert flops["train"] == 3 * (flops["encode"] + flops["decode"])


def test_what_fails_and_what_has_no_time_is_a_row_with_its_reason(gpu, bench):
    for error in (torch.OutOfMemoryError("CUDA"), ValueError("so\nand so")):
        with bench.case(model="x") as row:
            row["ms"] = 1
            raise error
    bench.deadline = time.monotonic() - 1
    with bench.case(model="y") as row:
        row |= bench.timed(lambda: None, 1)
    reasons = [row["skipped"] for row in json.loads(bench.path.read_text())]
    assert reasons == ["out of memory", "ValueError: so", "TimeoutError: no time left"]
    assert bench.rows[0]["ms"] == 1


def test_the_command_writes_a_page_of_all_parts(gpu, tmp_path, monkeypatch, capsys):
    ran = {}

    def run(command, timeout, **_):
        """A part's process that writes one row, but for one that hangs and one that dies."""
        part = command[command.index("--part") + 1]
        ran[part] = timeout
        if part == "speed":
            raise gpu.subprocess.TimeoutExpired(command, timeout)
        row = {"precision": "bf16", "matrix product": 2.0, "conv": 1.0}
        row = row if part == "peaks" else {"precision": "bf16", "TFLOP/s": 0.5}
        (tmp_path / f"{part}.json").write_text(json.dumps([row]))
        return gpu.subprocess.CompletedProcess(command, -9 if part == "tiles" else 0)

    monkeypatch.setattr(gpu.subprocess, "run", run)
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    gpu.main(["--device", "cpu", "--short", "-o", str(tmp_path), "--minutes", "10"])
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert list(parts) == list(gpu.SECONDS)
    assert parts["others"] == [{"skipped": "diffusers is not installed"}]
    assert "--upstream_python" in parts["upstream"][0]["skipped"]
    assert parts["training"] == [{"skipped": "skvideo is not installed"}]
    assert parts["speed"] == [{"skipped": "ended: time over, see speed.log"}]
    assert parts["tiles"][1] == {"skipped": "ended: -9, see tiles.log"}
    # Time that others left goes to those that follow, and all of them together keep to the whole.
    assert ran["agreement"] > gpu.SECONDS["agreement"] + gpu.GRACE_S
    assert ran["peaks"] == pytest.approx(gpu.SECONDS["peaks"] + gpu.GRACE_S, abs=1)
    page = (tmp_path / "results.md").read_text()
    assert "| bf16 | 0.5 | 25% |" in page
    assert all(f"## {name}" in page for name in gpu.SECONDS)
    assert page in capsys.readouterr().out


def test_without_a_gpu_it_says_how_to_try_it(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU is visible"):
        gpu.main(["-o", str(tmp_path)])


@pytest.mark.slow
def test_the_command_itself(tmp_path):
    import subprocess

    command = [sys.executable, BENCHMARKS / "gpu.py", "--device", "cpu", "--short"]
    subprocess.run([*command, "-o", tmp_path, "--minutes", "5"], check=True, timeout=900)
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    for name in COLUMNS:
        assert all("skipped" not in row for row in parts[name]), parts[name]

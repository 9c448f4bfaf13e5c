"""How much memory a process holds does not depend on how long its film is."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.clip_files import make_video

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "film_memory.py"
MOST = 1.05
"""Of what the shorter film takes, after which the longer one may not take more."""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

ONE_PROCESS = """
import sys
from pathlib import Path
from magvit2_pytorch.cli.main import main

folder, model = Path(sys.argv[1]), sys.argv[2]
for name in ("short", "long"):
    for command in ("tokenize", "reconstruct"):
        words = [command, folder / f"{name}.mp4", "--model", model, "-o", folder / command]
        assert main([*map(str, words), "--device", "cpu"]) == 0
    with open("/proc/self/status") as file:
        print("peak", next(line.split()[1] for line in file if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_a_longer_film_takes_no_more_memory_in_one_process(tmp_path, model):
    make_video(tmp_path / "short.mp4", 200, 64, 64)
    make_video(tmp_path / "long.mp4", 1000, 64, 64)
    command = [sys.executable, "-c", ONE_PROCESS, str(tmp_path), str(model)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    short, long = (int(line.split()[1]) for line in said.splitlines() if line.startswith("peak"))
    assert long <= MOST * short


@pytest.mark.slow
def test_ten_thousand_frames_take_the_memory_of_a_thousand(tmp_path):
    benchmark = runpy.run_path(str(SCRIPT))
    model = benchmark["make_model"](tmp_path, "tiny")
    short, long = (dict(benchmark["peaks"](tmp_path, n, 64, model)) for n in (1_000, 10_000))
    assert {name: long[name] for name in long if long[name] > MOST * short[name]} == {}

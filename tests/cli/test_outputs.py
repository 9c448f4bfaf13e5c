"""Outputs that cannot be written, and streams of the shell that are not as they should be."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from magvit2_pytorch.atomic import replacing
from magvit2_pytorch.cli import main as cli_main
from tests.cli import full_disk_worker
from tests.data.clip_files import make_video
from tests.processes import Started

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "magvit2_pytorch")


@pytest.fixture
def four(tmp_path):
    """Four videos, the second in a sub-folder."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a", "sub/b", "c", "d"):
        make_video(tmp_path / "in" / f"{name}.mp4", 2, 16, 16)
    return tmp_path / "in"


def in_the_way(out: Path, obstacle: str) -> None:
    if obstacle == "a folder in the place of a file":
        for suffix in (".mp4", ".codes.safetensors"):
            (out / f"c{suffix}" / "x").mkdir(parents=True)
    elif obstacle == "a file in the place of a folder":
        out.mkdir()
        (out / "sub").touch()
    else:
        (out / "sub").mkdir(parents=True)
        (out / "sub").chmod(0o500)


OBSTACLES = ["a folder in the place of a file", "a file in the place of a folder", "no permission"]


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_one_output_that_cannot_be_written_does_not_end_the_batch(
    run, tmp_path, four, model, obstacle
):
    if obstacle == "no permission" and os.geteuid() == 0:
        pytest.skip("everything is permitted to root")
    for command, suffix in (("reconstruct", "mp4"), ("tokenize", "codes.safetensors")):
        out = tmp_path / command
        in_the_way(out, obstacle)
        status, said, err = run(command, four, "--model", model, "-o", out)
        failed = "c" if obstacle == OBSTACLES[0] else "sub/b"
        assert status == 1
        assert f"magvit2: cannot write {out / failed}.{suffix}: " in err
        assert "1 of 4 files could not be written" in err
        lines = [line for line in said.splitlines() if line.startswith(str(out))]
        assert len(lines) == 3
        assert not list(out.rglob(".part*"))
    status, _, err = run("reconstruct", four / "c.mp4", "--model", model, "-o", four / "sub")
    assert status == 0


def test_a_name_may_be_as_long_as_the_file_system_allows(run, tmp_path, four, model):
    longest, longer = "x" * 251, "y" * 245
    (four / "a.mp4").rename(four / f"{longest}.mp4")
    (four / "c.mp4").rename(four / f"{longer}.mp4")
    status, _, err = run("reconstruct", four, "--model", model, "-o", tmp_path / "out")
    assert (status, err) == (0, "")
    assert (tmp_path / "out" / f"{longest}.mp4").is_file()
    # With our suffix the names are too long: these two, and no other.
    status, _, err = run("tokenize", four, "--model", model, "-o", tmp_path / "codes")
    assert status == 1
    assert err.count("File name too long") == 2
    assert "2 of 4 files could not be written" in err
    assert len(list((tmp_path / "codes").rglob("*.codes.safetensors"))) == 2
    status, _, err = run("decode", tmp_path / "codes", "--model", model, "-o", tmp_path / "v")
    assert status == 0


@pytest.mark.parametrize("name", ["a" * 255, "é" * 125 + ".json", "b" * 240 + ".safetensors"])
def test_a_part_keeps_the_suffix_and_fits(tmp_path, name):
    with replacing(tmp_path / name) as part:
        assert part.suffix == (tmp_path / name).suffix
        part.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_full_disk_is_an_os_error_and_leaves_nothing(tmp_path):
    with Started(full_disk_worker.main, str(tmp_path)) as worker:
        assert worker.wait() == 0, worker.stderr
        results = json.loads(worker.stdout)
    assert len(results) == 10
    assert [name for name, result in results.items() if result != ["EFBIG", [], False]] == []


def shell(*words, encoding="utf-8", **options):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    return subprocess.run(
        [*COMMAND, *words], cwd=ROOT, env=environment, capture_output=True, **options
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_a_stream_lacks_are_escaped(encoding):
    done = shell("evaluate", "--help", encoding=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Fr\\xe9chet" in done.stdout or "Fréchet".encode(encoding) in done.stdout
    done = shell("info", "наверное", encoding=encoding)
    assert done.returncode == 1
    assert done.stderr.startswith(b"magvit2: error: there is no ")


@pytest.mark.parametrize("state", ["missing", "closed"])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_streams_may_be_missing_or_closed(monkeypatch, tmp_path, name, state, model):
    stream = None
    if state == "closed":
        stream = open(os.devnull, "w")  # noqa: SIM115
        stream.close()
    video = make_video(tmp_path / "a.mp4", 2, 16, 16)
    monkeypatch.setattr(sys, name, stream)
    words = ["reconstruct", str(video), "--model", str(model), "-o", str(tmp_path / "b.mp4")]
    assert cli_main.main(words) == 0
    assert cli_main.main(["info", str(tmp_path / "nothing")]) == 1
    assert cli_main.main(["--help"]) == 0
    assert getattr(sys, name) is stream
    assert (tmp_path / "b.mp4").is_file()


@pytest.mark.parametrize(
    "words",
    [["info", "--preset", "tiny"], pytest.param(["train", "--help"], marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_a_reader_may_leave(words):
    program = subprocess.Popen(
        [*COMMAND, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    program.stdout.close()  # as `head -c 0`
    assert program.stderr.read() == b""
    assert program.wait() in (0, 141)  # argparse ignores such errors itself


HELP = """
import inspect, torch, magvit2_pytorch as m
from magvit2_pytorch.cli.main import COMMANDS, build_parser
for name in COMMANDS:
    parser = build_parser([name, "--preset", "tiny"] if name == "train" else [name])
    print(parser.format_help())
    print(parser._subparsers._group_actions[0].choices[name].format_help())
print(inspect.signature(m.VideoTokenizer), inspect.signature(m.VideoTokenizerTrainer))
tokenizer = m.VideoTokenizer.from_preset("tiny")
print(tokenizer.decode_from_code_indices(tokenizer.tokenize(torch.zeros(1, 3, 5, 32, 32))).shape)
"""


def test_help_needs_no_docstrings(monkeypatch, capsys):
    """They are read from the source."""
    printed = []
    for _ in range(2):
        exec(HELP, {})
        printed.append(capsys.readouterr().out)
        modules = [module for name, module in sys.modules.items() if "magvit2_pytorch." in name]
        for thing in {id(x): x for module in modules for x in vars(module).values()}.values():
            if inspect.isclass(thing) or inspect.isfunction(thing):
                own = thing.__module__.startswith("magvit2_pytorch.")
                if own and thing.__doc__ is not None:
                    monkeypatch.setattr(thing, "__doc__", None)
    assert printed[1] == printed[0]
    assert printed[0].count("usage: ") == 2 * len(cli_main.COMMANDS)


@pytest.mark.slow
def test_help_and_signatures_without_docstrings(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    done = subprocess.run([sys.executable, "-OO", "-c", HELP], cwd=ROOT, capture_output=True)
    exec(HELP, {})
    assert done.stdout.decode() == capsys.readouterr().out
    assert done.stdout.count(b"usage: ") == 2 * len(cli_main.COMMANDS)

"""The command as a whole: help, versions, statuses."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from inspect import signature

import pytest

from magvit2_pytorch.cli.main import COMMANDS, build_parser, main
from magvit2_pytorch.cli.options import UserError
from magvit2_pytorch.version import __version__


def start(*words, **env):
    command = [sys.executable, "-m", "magvit2_pytorch", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})


def test_the_module_is_the_command():
    done = start("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"magvit2 {__version__}\n", "")
    (script,) = entry_points(group="console_scripts", name="magvit2")
    assert script.load() is main
    assert start("info").returncode == main(["info"]) == 2


def test_help_loads_nothing_heavy():
    commands = [["--help"], ["--version"], ["tokenize", "--help"]]
    code = (
        "import sys\nfrom magvit2_pytorch.cli.main import main\n"
        f"assert not any(map(main, {commands}))\n"
        "print([n for n in ('torch', 'av', 'PIL', 'accelerate', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_help_names_every_command(run):
    status, out, _ = run("--help")
    assert status == 0
    for name in ("train", "tokenize", "decode", "reconstruct", "info", "demo"):
        assert f"    {name} " in out
    assert out == run("--help")[1]
    assert run()[:2] == (2, out)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_explains_every_option(run, name):
    status, out, _ = run(name, "--help")
    assert status == 0
    command = build_parser([name])._subcommands_action._name_parser_map[name]
    actions = [action for action in command._actions if action.dest != "help"]
    assert len(actions) >= len(set(signature(COMMANDS[name]).parameters) - {"model", "training"})
    for action in actions:
        for flag in action.option_strings or [action.metavar]:
            assert flag in out
        assert action.help
        assert len(action.help) > 10
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["tokenize"],
        ["tokenize", "x.mp4", "-o", "out"],
        ["tokenize", "x.mp4", "-o", "out", "--model", "m", "--sise", "64"],
        ["tokenize", "x.mp4", "-o", "out", "--model", "m", "--siz", "64"],
        ["tokenize", "x.mp4", "-o", "out", "--model", "m", "--size", "large"],
        ["tokenize", "x.mp4", "-o", "out", "--model", "m", "--size", "0"],
        ["decode", "x", "-o", "out", "--model", "m", "--chunk_frames", "0"],
        ["decode", "x", "-o", "out", "--model", "m", "--precision", "fp8"],
        ["reconstruct", "x", "-o", "out", "--model", "m", "--device", "gpu"],
        ["info"],
        ["info", "x", "--preset", "tiny"],
        ["info", "--preset", "tinny"],
    ],
)
def test_wrong_usage_is_status_2(run, words):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert "error: " in err


def test_ctrl_c_is_status_130(run, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("magvit2_pytorch.cli.main.build_parser", interrupted)
    assert run("info", "x") == (130, "", "magvit2: interrupted\n")


@pytest.mark.parametrize("error", [UserError("no\nsuch thing"), FileNotFoundError(2, "gone", "x")])
def test_what_a_user_can_mend_is_one_line_unless_debugging(run, monkeypatch, error):
    def fail(args):
        raise error

    monkeypatch.setattr("magvit2_pytorch.cli.main.build_parser", fail)
    monkeypatch.delenv("MAGVIT2_DEBUG", raising=False)
    status, out, err = run("info", "x")
    assert (status, out) == (1, "")
    assert err.startswith("magvit2: error: ")
    assert err.count("\n") == 1
    monkeypatch.setenv("MAGVIT2_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["info", "x"])


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("ours"), AssertionError("ours")])
def test_our_own_errors_keep_their_tracebacks(monkeypatch, error):
    def fail(args):
        raise error

    monkeypatch.setattr("magvit2_pytorch.cli.main.build_parser", fail)
    with pytest.raises(type(error), match="ours"):
        main(["info", "x"])


def test_a_missing_file_is_one_line_from_the_shell_too():
    done = start("info", "/nowhere/at/all")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "magvit2: error: there is no /nowhere/at/all\n"

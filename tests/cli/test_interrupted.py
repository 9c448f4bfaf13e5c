"""Real processes, stopped in the middle: a whole file, or none."""

import fcntl
import os
import pty
import re
import signal
import struct
import termios
from contextlib import contextmanager

import pytest
import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.cli.main import main
from magvit2_pytorch.codes.code_file import write_codes
from magvit2_pytorch.codes.code_header import CodedVideo
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.pipelines.files import code_header
from tests.data.clip_files import make_video
from tests.processes import Started

NUM_FRAMES = 4000
"""More than are done before a signal arrives."""
SOME = r"[1-9]\d\d"
"""A number of frames that are done: x264 keeps the first few dozen before it writes any."""
OUTPUTS = {"tokenize": "out.codes.safetensors", "reconstruct": "out.mp4", "decode": "out.mp4"}


@pytest.fixture(scope="module")
def films(tmp_path_factory, model):
    """A long film for each command, and one short one."""
    folder = tmp_path_factory.mktemp("films")
    make_video(folder / "film.mp4", NUM_FRAMES, 16, 16)
    make_video(folder / "short.mp4", 3, 16, 16)
    tokenizer = VideoTokenizer.from_pretrained(model)
    video = CodedVideo(
        header=code_header(tokenizer),
        source="film.mp4",
        kind="video",
        num_frames=NUM_FRAMES,
        height=16,
        width=16,
        fps=25.0,
        shape=tokenizer.latent_grid(NUM_FRAMES, 16, 16),
    )
    codes = torch.randint(tokenizer.codebook_size, video.shape)
    write_codes(folder / "film.codes.safetensors", codes, video)
    return folder


@contextmanager
def running(name, *inputs, model, output):
    """A command, two frames at a time; gives the process and the terminal with its bar."""
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    words = [name, *inputs, "--model", model, "-o", output, "--chunk_frames", 2, "--device", "cpu"]
    with Started(main, [str(word) for word in words], stderr=os.ttyname(theirs)) as process:
        os.close(theirs)
        yield process, terminal
    os.close(terminal)


def read(terminal, until=None):
    """What the terminal shows, up to a pattern in it or to the end."""
    shown = ""
    while until is None or not re.search(until, shown):
        try:
            shown += os.read(terminal, 4096).decode()
        except OSError:  # Linux says so when nobody writes any more
            break
    return shown


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "number", "status"),
    [
        ("tokenize", signal.SIGINT, 130),
        ("reconstruct", signal.SIGINT, 130),
        ("decode", signal.SIGTERM, 143),
        ("reconstruct", signal.SIGHUP, 129),
    ],
)
def test_an_interrupted_command_leaves_what_was_there(tmp_path, films, model, name, number, status):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("hanging up is ignored here, as nohup asks")
    film = films / ("film.codes.safetensors" if name == "decode" else "film.mp4")
    target = tmp_path / OUTPUTS[name]
    target.write_bytes(b"an older file")
    with running(name, film, model=model, output=target) as (process, terminal):
        # How many of how many are done, how long that took, and how long the others will.
        bar = rf"\b{SOME}/{NUM_FRAMES} \[\d\d:\d\d<\d\d:\d\d, [^\r]*frames/s\]"
        assert re.search(bar, read(terminal, until=bar))
        assert len(names(tmp_path)) == (1 if name == "tokenize" else 2)
        process.send_signal(number)
        shown = read(terminal)
        assert process.wait() == status
    assert "Traceback" not in shown
    assert ("magvit2: interrupted" in shown) == (number == signal.SIGINT)
    assert names(tmp_path) == [target.name]
    assert target.read_bytes() == b"an older file"


def test_a_killed_command_leaves_a_hidden_part_until_the_next_run(tmp_path, films, model, run):
    output = tmp_path / "out.mp4"
    with running("reconstruct", films / "film.mp4", model=model, output=output) as (
        process,
        terminal,
    ):
        read(terminal, until=rf"\b{SOME}/{NUM_FRAMES} ")
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    (part,) = names(tmp_path)
    assert part.startswith(".part-")
    assert run("reconstruct", films / "short.mp4", "--model", model, "-o", output)[0] == 0
    assert names(tmp_path) == ["out.mp4"]
    assert VideoFile(output).num_frames == 3


def test_the_bar_says_which_of_several_files_it_is(tmp_path, films, model):
    for number in range(3):
        os.link(films / "short.mp4", tmp_path / f"{number}.mp4")
    with running("tokenize", tmp_path, model=model, output=tmp_path / "out") as (process, terminal):
        shown = read(terminal)
        assert process.wait() == 0
    found = re.findall(r"(\[\d/3\] \d\.mp4): +0%[^\r]* 0/3 \[", shown)
    assert list(dict.fromkeys(found)) == ["[1/3] 0.mp4", "[2/3] 1.mp4", "[3/3] 2.mp4"]

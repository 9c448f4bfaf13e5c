"""Atomic writing of files, and removal of leftovers."""

import os
import subprocess
import sys

import pytest

from magvit2_pytorch.atomic import remove_abandoned, replacing

KILLED = """
import os, signal, sys
from magvit2_pytorch.atomic import replacing

with replacing(sys.argv[1]) as part:
    part.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_complete(tmp_path):
    target = tmp_path / "new" / "a.mp4"
    with replacing(target) as part:
        part.write_bytes(b"half")
        assert names(target.parent) == [part.name]
        assert part.name.startswith(".")
        assert part.suffix == ".mp4"
        part.write_bytes(b"whole")
    assert names(target.parent) == ["a.mp4"]
    assert target.read_bytes() == b"whole"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_keeps_the_older_file(tmp_path, error):
    target = tmp_path / "a.mp4"
    target.write_bytes(b"older")

    def write():
        with replacing(target) as part:
            part.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == ["a.mp4"]
    assert target.read_bytes() == b"older"


@pytest.mark.skipif(os.name != "posix", reason="processes are asked by signals")
def test_only_leftovers_of_dead_processes_are_removed(tmp_path):
    target = tmp_path / "a.mp4"
    subprocess.run([sys.executable, "-c", KILLED, str(target)])
    (killed,) = names(tmp_path)
    elsewhere = killed.replace(killed.split("-")[1], "00000000")
    for name in ("a.mp4", ".hidden", elsewhere, ".part-1-a.mp4"):
        (tmp_path / name).touch()
    with replacing(target) as ours:
        ours.write_bytes(b"whole")
        before = set(names(tmp_path))
        remove_abandoned(tmp_path)
        assert before - set(names(tmp_path)) == {killed}
    assert target.read_bytes() == b"whole"

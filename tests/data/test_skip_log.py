"""The list of unusable files that all processes share."""

import json
import warnings

import pytest

from magvit2_pytorch.media.unusable import SkipLog

ANOTHER = 1
"""No process of a test has this number."""


def line(path: str) -> bytes:
    return json.dumps([path, "damaged", ANOTHER]).encode() + b"\n"


@pytest.mark.parametrize("length", range(1, len(line("b.mp4"))))
def test_an_incomplete_line_of_another_process_is_ignored(length):
    log = SkipLog()
    with open(log.file, "wb", buffering=0) as other:
        other.write(line("a.mp4") + line("b.mp4")[:length])
        assert log.all() == {"a.mp4": "damaged"}
        other.write(line("b.mp4")[length:])
        assert log.all() == {"a.mp4": "damaged", "b.mp4": "damaged"}


def test_the_first_writer_warns():
    log = SkipLog()
    with open(log.file, "wb") as other:
        other.write(line("theirs.mp4"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.add("theirs.mp4", "damaged")
    with pytest.warns(UserWarning, match=r"skipped ours\.mp4: damaged"):
        log.add("ours.mp4", "damaged")
    assert log.all() == {"theirs.mp4": "damaged", "ours.mp4": "damaged"}

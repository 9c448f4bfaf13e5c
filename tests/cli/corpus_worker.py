"""`magvit2` that kills itself: on its N-th file, or in the middle of writing its N-th shard."""

import os
import signal
import time

from magvit2_pytorch.cli.main import main as command
from magvit2_pytorch.codes import code_file
from magvit2_pytorch.pipelines import corpus

SAVE_FILE = code_file.save_file


def wait_for_the_other_process(folder, seconds=120):
    # A process that begins later removes the unfinished files of dead ones.
    end = time.monotonic() + seconds
    while not list(folder.glob("codes-*-00000-*")):
        assert time.monotonic() < end, "the other process has written nothing"
        time.sleep(0.05)


def die_in_the_middle_of(function, number):
    calls = []

    def dies(*args, **options):
        calls.append(args)
        if len(calls) == number:
            if function is SAVE_FILE:
                args[1].write_bytes(b"half")
                wait_for_the_other_process(args[1].parent)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)

    return dies


def main(where, number, *words):
    if where == "file":
        corpus.tokenize_file = die_in_the_middle_of(corpus.tokenize_file, number)
    elif where == "shard":
        code_file.save_file = die_in_the_middle_of(code_file.save_file, number)
    elif where == "interrupt":
        tokenize_file, calls = corpus.tokenize_file, []

        def interrupted(*args, **options):
            calls.append(args)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGINT)
            return tokenize_file(*args, **options)

        corpus.tokenize_file = interrupted
    return command(words)

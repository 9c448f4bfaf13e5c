"""`magvit2` that kills itself: on its N-th file, or in the middle of writing its N-th shard."""

import os
import signal

from magvit2_pytorch.cli.main import main as command
from magvit2_pytorch.codes import code_file
from magvit2_pytorch.pipelines import corpus


def die_in_the_middle_of(function, number):
    calls = []

    def dies(*args, **options):
        calls.append(args)
        if len(calls) == number:
            if function is code_file.save_file:
                args[1].write_bytes(b"half")
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

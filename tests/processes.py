"""Processes of their own that start in milliseconds, as copies of one that has the imports done.

That one has computed nothing, so that its copies wait for no threads of PyTorch that they lack.
"""

import atexit
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
START_METHOD = multiprocessing.get_all_start_methods()[0]
"""That of the platform, which comes first."""
IMPORTED = (
    "pytest", "torch._dynamo", "torch.distributed", "accelerate", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "av", "PIL.Image", "safetensors.torch",
    "magvit2_pytorch.cli.main", "magvit2_pytorch.evaluation.report",
    "magvit2_pytorch.pipelines.corpus", "magvit2_pytorch.training.dry_run",
    "magvit2_pytorch.training.tokenizer_task",
)  # fmt: skip


@cache
def fresh() -> BaseContext:
    """Starts copies of a process that has imported the library, from any working directory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        # Threads that wait for each other in loops are slow beside another test.
        patch.setenv("OMP_WAIT_POLICY", "passive")
        forkserver.ensure_running()
    return context


def _run(function: Callable, args: tuple, environment: dict[str, str], outputs, ready) -> None:
    # Its own processes, such as data workers, start as those of any process.
    multiprocessing.set_start_method(START_METHOD, force=True)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(outputs, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    # Those of the process that was copied believe that they write to a file.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    ready.send(None)
    try:
        sys.exit(function(*args))
    finally:
        atexit._run_exitfuncs()  # which processes of `multiprocessing` leave out


class Started:
    """A function in a process of its own, with one thread; its result is the status.

    What it prints goes to files, or its errors to the terminal `stderr`.
    """

    def __init__(self, function: Callable, *args: object, stderr: str = "", **environment: object):
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [f"{self._folder.name}/out", stderr or f"{self._folder.name}/err"]
        environment = os.environ | {name: str(value) for name, value in environment.items()}
        ready, there = fresh().Pipe(duplex=False)
        arguments = (function, args, dict(environment), self._outputs, there)
        self._process = fresh().Process(target=_run, args=arguments)
        self._process.start()
        there.close()
        ready.recv()
        ready.close()

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.join()
        self._folder.cleanup()

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def poll(self) -> int | None:
        """The status, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        """The status; minus the signal's number where one ended it."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"runs for more than {timeout} s"
        return self._process.exitcode

    @property
    def stdout(self) -> str:
        return Path(self._outputs[0]).read_text()

    @property
    def stderr(self) -> str:
        return Path(self._outputs[1]).read_text()


def start_ranks(function: Callable, *args: object) -> list[Started]:
    """Two processes as `torchrun` starts them, which does not end one for the other."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    names = dict(WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    return [Started(function, *args, RANK=rank, LOCAL_RANK=rank, **names) for rank in (0, 1)]


def run_two_processes(worker: ModuleType, folder: Path) -> list[dict]:
    """What each rank saved. `worker.main` takes: rank, file to meet at, start of the output."""
    places = f"{folder}/rendezvous", f"{folder}/out"
    first, second = (Started(worker.main, rank, *places) for rank in (0, 1))
    with first, second:
        assert [rank.wait(120) for rank in (first, second)] == [0, 0], first.stderr + second.stderr
    return [torch.load(folder / f"out.{rank}", weights_only=True) for rank in (0, 1)]

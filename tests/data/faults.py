"""Runs `faults_worker` over files, with a time limit for each, through crashes and hangs."""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

TIME_LIMIT_S = 60
"""For one file: a hang, not a slow machine, is what takes longer."""

ROOT = Path(__file__).parents[2]


def examine_all(paths: Sequence[Path]) -> dict[Path, dict]:
    """What the worker says of each file; a crash or a hang is the answer of the file it was at.

    After one of those a new worker goes on with the next file.
    """
    answers: dict[Path, dict] = {}
    while left := [path for path in paths if path not in answers]:
        worker = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tests.data.faults_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        said, complaints = _lines(worker.stdout), _lines(worker.stderr)
        threading.Thread(target=_tell, args=(worker.stdin, left), daemon=True).start()
        at, end = None, None
        while end is None and len(answers) < len(paths):
            try:
                line = said.get(timeout=TIME_LIMIT_S)
            except queue.Empty:
                end = f"hangs for {TIME_LIMIT_S} s"
                break
            if line is None:
                end = f"ends with status {worker.wait()}"
            elif line.startswith("start "):
                at = Path(line[6:])
            else:
                answers[at], at = json.loads(line), None
        worker.kill()
        worker.wait()
        if end is not None:
            errors = "".join(f"{line}\n" for line in iter(complaints.get, None))[-2000:]
            if at is None:
                raise RuntimeError(f"the worker {end} at no file: {errors}")
            answers[at] = {"usable": None, "reason": end, "broken": [f"{end}: {errors}"]}
    return answers


def _lines(stream: IO[str]) -> "queue.Queue[str | None]":
    """Lines as they come, and None at the end."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read():
        for line in stream:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _tell(stream: IO[str], paths: Sequence[Path]) -> None:
    try:
        with stream:
            stream.writelines(f"{path}\n" for path in paths)
    except BrokenPipeError:  # it died before it had heard of all
        pass

"""With what a run was made: code, libraries, machine, options; kept in run.json."""

import hashlib
import json
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate import Accelerator

from magvit2_pytorch.data.replace_file import replacing
from magvit2_pytorch.version import __version__

PACKAGE = Path(__file__).parents[1]


def describe_start(step: int, accelerator: Accelerator) -> dict[str, Any]:
    """What goes on from `step`, now, and on what."""
    device = accelerator.device
    on_gpu = device.type == "cuda"
    return {
        "step": step,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device),
        "num_processes": accelerator.num_processes,
        "code": {"version": __version__, "commit": git_commit(PACKAGE.parent), "source": source()},
        "libraries": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
        },
    }


def read_run(path: Path) -> dict[str, Any]:
    """The record of a run: `starts`, oldest first, and `wandb_id` where wandb was on.

    Without a file, that of a run that has not started.
    """
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"starts": []}


def write_run(path: Path, run: dict[str, Any]) -> None:
    """Writes what `read_run` reads, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def source(folder: Path = PACKAGE) -> str:
    """The first 12 digits of the SHA-256 over all modules: also of changes in no commit."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def git_commit(folder: Path) -> str | None:
    """The commit that a checkout stands on; None where `folder` is no checkout.

    Read from git's files, as git itself may be missing, or refuse folders of other owners.
    """
    git = folder / ".git"
    try:
        if git.is_file():  # a worktree or submodule names the place
            git = folder / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        shared = git / "commondir"
        common = git / shared.read_text(encoding="utf-8").strip() if shared.exists() else git
        for place in (git, common):
            if (place / name).is_file():
                return (place / name).read_text(encoding="utf-8").strip()
        for line in (common / "packed-refs").read_text(encoding="utf-8").splitlines():
            commit, _, packed = line.partition(" ")
            if packed == name:
                return commit
    except (OSError, UnicodeDecodeError):
        return None
    return None

"""Provenance of a run in run.json: code, libraries, machine, options."""

import hashlib
import json
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate import Accelerator

from magvit2_pytorch.atomic import replacing
from magvit2_pytorch.version import __version__

PACKAGE = Path(__file__).parents[1]


def start_metadata(step: int, accelerator: Accelerator) -> dict[str, Any]:
    """Metadata of a start or resume: step, time, device, versions."""
    device = accelerator.device
    on_gpu = device.type == "cuda"
    return {
        "step": step,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device),
        "num_processes": accelerator.num_processes,
        "code": {
            "version": __version__,
            "commit": git_commit(PACKAGE.parent),
            "source": source_hash(),
        },
        "libraries": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
        },
    }


def read_run(path: Path) -> dict[str, Any]:
    """Reads the record of a run; a missing file has no starts.

    It has `starts`, oldest first, and `wandb_id` if wandb was used.
    """
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"starts": []}


def write_run(path: Path, run: dict[str, Any]) -> None:
    """Writes the record of a run atomically."""
    with replacing(path) as part:
        part.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def source_hash(folder: Path = PACKAGE) -> str:
    """First 12 digits of the SHA-256 of all modules, uncommitted changes included."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def git_commit(folder: Path) -> str | None:
    """Commit of a checkout; None without one or if git fails."""
    if not (folder / ".git").exists():  # git would find a repository around a virtual environment
        return None
    try:
        command = ["git", "rev-parse", "--verify", "HEAD"]
        result = subprocess.run(
            command, cwd=folder, capture_output=True, check=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()

"""Memory of the devices, processes, compilation, and seeds computed from a key."""

import hashlib
import re
import sys
from collections.abc import Iterable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import nn


def num_processes() -> int:
    """Processes of `torch.distributed`, 1 if it is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def peak_memory(device: torch.device) -> int:
    """Peak bytes of tensors on a GPU, else of the process.

    0 where the operating system does not report it, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux, `ru_maxrss` includes the peak of the process that started this one.
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def total_memory(device: torch.device) -> int:
    """Total bytes of the GPU, or of the machine for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def free_memory(device: torch.device) -> int:
    """Free bytes of the device, without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def keyed_seed(*key: int | str) -> int:
    """63-bit seed of a key.

    It is the same on every machine, process and version of Python. Begin the key with a word for
    its purpose: two purposes with the same numbers then draw independent values. Similar keys have
    different seeds too: 1 and "1" differ, and so do ("ab", "c") and ("a", "bc").
    """
    digest = hashlib.sha256()
    for part in key:
        # Python does not promise the values of hash(), nor those of random.Random(str).
        # File names that are not UTF-8 contain surrogates.
        text = str(part).encode("utf-8", "surrogatepass")
        kind = "s" if isinstance(part, str) else "i"
        digest.update(f"{kind}{len(text)}:".encode() + text)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def draw_names(names: Sequence[str], fraction: float, *key: int | str) -> set[str]:
    """A random fraction of names, at least one and not all.

    A name is drawn if a number in [0, 1) from the key and the name alone is below the fraction, so
    other names do not move it. If that draws none or all, the lowest is drawn, or the highest is
    not.
    """
    draws = {name: keyed_seed(*key, name) / 2**63 for name in names}
    chosen = {name for name, draw in draws.items() if draw < fraction}
    chosen = chosen or {min(draws, key=draws.__getitem__)}
    return chosen - {max(draws, key=draws.__getitem__)} if len(chosen) == len(draws) else chosen


def compile_in_place(modules: Iterable[nn.Module], recompile_limit: int, **options: Any) -> None:
    """Compiles modules, each for up to this many variants of its input."""
    if "recompile_limit" in signature(torch.compile).parameters:
        options["recompile_limit"] = recompile_limit
    else:
        # Older versions of PyTorch have one limit for the whole process.
        config = torch._dynamo.config
        config.cache_size_limit = max(config.cache_size_limit, recompile_limit)
    for module in modules:
        module.compile(**options)

"""How much memory a process took, and how much there is."""

import os
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """The most bytes held at once: tensors on a GPU, else the whole process since it began.

    0 where the system does not say, as Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def total_memory(device: torch.device) -> int | None:
    """Bytes of the GPU, else of the machine; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None

"""Devices and processes: accelerate's, set up from the configuration."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch import nn

from magvit2_pytorch.training.config import TrainingConfig

T = TypeVar("T")

SHARDED = {
    "fsdp_plugin": "ACCELERATE_USE_FSDP",
    "deepspeed_plugin": "ACCELERATE_USE_DEEPSPEED",
    "megatron_lm_plugin": "ACCELERATE_USE_MEGATRON_LM",
}
"""How accelerate is told to shard a model: arguments, and variables of `accelerate launch`."""

COLLECTIVE_FAILED = re.compile(r"gloo|nccl|connection (closed|reset)|timed out|broken pipe", re.I)


class LostProcess(RuntimeError):
    """Another process of this training died or no longer answers."""


def build_accelerator(config: TrainingConfig, kwargs: dict[str, Any]) -> Accelerator:
    """Devices, processes and trackers as the configuration asks; `kwargs` go before all else.

    Of two `kwargs_handlers` of a kind the one in `kwargs` counts. Raises `ValueError` where the
    model is to be sharded: every process holds all of it (DistributedDataParallel).
    """
    _check_not_sharded(kwargs)
    trackers = [
        name
        for name, used in (
            ("wandb", config.use_wandb_tracking),
            ("tensorboard", config.use_tensorboard_tracking),
        )
        if used
    ]
    handlers = [
        DistributedDataParallelKwargs(find_unused_parameters=config.find_unused_parameters),
        InitProcessGroupKwargs(timeout=timedelta(seconds=config.process_timeout_s)),
    ]
    given = kwargs.get("kwargs_handlers") or []
    handlers = [h for h in handlers if not any(type(g) is type(h) for g in given)] + given
    defaults = dict(
        # Without an accelerator, several processes only find each other when told so.
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        # Only for its gradient scaler: accelerate keeps one precision for a whole process.
        mixed_precision="fp16" if config.precision == "fp16" else "no",
        log_with=trackers or None,
        project_dir=config.results_folder,
    )
    accelerator = Accelerator(**(defaults | kwargs | {"kwargs_handlers": handlers}))
    # Accelerate leaves out what is not installed without a word.
    missing = set(trackers) - set(map(str, accelerator.log_with))
    if missing and "log_with" not in kwargs:
        raise ValueError(
            f"{' and '.join(sorted(missing))} cannot be imported: "
            f"pip install {' '.join(sorted(missing))}, or train without"
        )
    return accelerator


def _check_not_sharded(kwargs: dict[str, Any]) -> None:
    for name, variable in SHARDED.items():
        # On a CPU accelerate would pass over either without a word.
        if kwargs.get(name) is not None or os.environ.get(variable, "").lower() == "true":
            raise ValueError(
                f"{name} ({variable}) would shard weights and optimizer over processes, which "
                "averaged weights, discriminators and checkpoints here do not know. Leave it out: "
                "each process holds the whole model, and what fills a GPU is activations"
            )


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether it is true in any of them: what one does alone leaves the others waiting."""
    if accelerator.num_processes == 1:
        return flag
    count = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(count, reduction="sum") > 0)


def largest(accelerator: Accelerator, *numbers: float) -> list[float]:
    """Each number's largest value over all processes."""
    own = torch.tensor([numbers], dtype=torch.float32, device=accelerator.device)
    return accelerator.gather(own).amax(dim=0).tolist()


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Does it in the main process. All get what it returns, or raise what it raises."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result


def check_all_have_gradients(accelerator: Accelerator, module: nn.Module) -> None:
    """Raises `ValueError` where DistributedDataParallel would average some gradients only.

    It waits for a gradient of every parameter, unless told to find those without one.
    """
    ddp = accelerator.ddp_handler
    if accelerator.num_processes == 1 or ddp.find_unused_parameters or ddp.static_graph:
        return
    named = accelerator.unwrap_model(module).named_parameters()
    without = [name for name, p in named if p.requires_grad and p.grad is None]
    if without:
        raise ValueError(
            f"no gradient reached {', '.join(without[:3])}{' and more' * (len(without) > 3)}: "
            "with several processes give find_unused_parameters=True (somewhat slower), or freeze "
            "them with requires_grad_(False)"
        )


@contextmanager
def naming_lost_processes(accelerator: Accelerator) -> Iterator[None]:
    """Says what it means that a process cannot reach another one."""
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes > 1 and COLLECTIVE_FAILED.search(str(error)):
            raise LostProcess(
                f"process {accelerator.process_index} of {accelerator.num_processes} no longer "
                "hears from another one, which has died, was killed (out of memory?) or hangs: "
                "look for the first error among their output. Training ends here; to go on from "
                'the last checkpoint: trainer.train(resume="auto"), or --resume auto'
            ) from error
        raise

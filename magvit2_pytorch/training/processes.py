"""Several processes, interrupts, and processes that are lost."""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch import nn

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.training.loop_config import LoopConfig


class Interruptible:
    """Records the first Ctrl-C or SIGTERM; a second one interrupts.

    The training loop checks `requested` after each step. Outside the main thread nothing changes.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.requested = False
        self._previous_handlers: dict[int, object] = {}

    def __enter__(self) -> "Interruptible":
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous_handlers[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _record(self, number: int, frame: object) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers.clear()


T = TypeVar("T")

SHARDING = {
    "fsdp_plugin": "ACCELERATE_USE_FSDP",
    "deepspeed_plugin": "ACCELERATE_USE_DEEPSPEED",
    "megatron_lm_plugin": "ACCELERATE_USE_MEGATRON_LM",
}
"""Arguments of `Accelerator` that shard a model, and variables set by `accelerate launch`."""

COLLECTIVE_ERROR = re.compile(r"gloo|nccl|connection (closed|reset)|timed out|broken pipe", re.I)


class LostProcess(RuntimeError):
    """Another process of this training died or no longer responds."""


def build_accelerator(config: LoopConfig, kwargs: dict[str, Any]) -> Accelerator:
    """Builds the `Accelerator` of a run; `kwargs` override the configuration.

    Of two `kwargs_handlers` of one type, the one in `kwargs` is used. Raises `ValueError` if the
    model would be sharded: every process holds the whole model (DistributedDataParallel).
    """
    for name, variable in SHARDING.items():
        # On a CPU accelerate silently ignores both.
        if kwargs.get(name) is not None or os.environ.get(variable, "").lower() == "true":
            raise ValueError(
                f"{name} ({variable}) shards weights and optimizer state over processes, which "
                "averaged weights, discriminators and checkpoints do not support. Leave it out: "
                "each process holds the whole model, and most GPU memory is used by activations"
            )
    trackers = ["wandb"] * config.use_wandb_tracking
    trackers += ["tensorboard"] * config.use_tensorboard_tracking
    handlers = [
        DistributedDataParallelKwargs(find_unused_parameters=config.find_unused_parameters),
        InitProcessGroupKwargs(timeout=timedelta(seconds=config.process_timeout_s)),
    ]
    user_handlers = kwargs.get("kwargs_handlers") or []
    user_types = {type(handler) for handler in user_handlers}
    handlers = [h for h in handlers if type(h) not in user_types] + user_handlers
    defaults = dict(
        # Without a GPU, several processes find each other only if this is set.
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        # Only for its gradient scaler: accelerate has one precision for the whole process.
        mixed_precision="fp16" if config.precision == "fp16" else "no",
        log_with=trackers or None,
        project_dir=as_path(config.results_folder),
    )
    states = [AcceleratorState, GradientState]
    # Processes that are connected stay connected, with the timeout of the first.
    if PartialState._shared_state.get("num_processes", 1) == 1:
        states.append(PartialState)
    with _shared_states({cls: type(cls._shared_state)() for cls in states}):
        accelerator = Accelerator(**(defaults | kwargs | {"kwargs_handlers": handlers}))
    # Accelerate silently leaves out trackers that are not installed.
    missing = set(trackers) - set(map(str, accelerator.log_with))
    if missing and "log_with" not in kwargs:
        raise ValueError(
            f"{' and '.join(sorted(missing))} cannot be imported: "
            f"pip install {' '.join(sorted(missing))}, or switch off the tracking"
        )
    return accelerator


def prepare(accelerator: Accelerator, *objects: Any) -> tuple[Any, ...]:
    """`accelerator.prepare` of several objects, with the state of this accelerator."""
    states = (accelerator.state, accelerator.gradient_state)
    with _shared_states({type(state): state.__dict__ for state in states}):
        return accelerator.prepare(*objects)


@contextmanager
def _shared_states(states: dict[type, dict]) -> Iterator[None]:
    """Replaces the states that accelerate keeps for the whole process.

    It refuses or ignores a second precision or device. Objects made before keep their own states.
    """
    before = {cls: cls._shared_state for cls in states}
    for cls, state in states.items():
        cls._shared_state = state
    try:
        yield
    finally:
        for cls, state in before.items():
            # The first connection of processes is that of the whole process.
            if state or cls is not PartialState:
                cls._shared_state = state


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """True in all processes if the flag is set in any."""
    if accelerator.num_processes == 1:
        return flag
    count = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(count, reduction="sum") > 0)


def max_over_processes(accelerator: Accelerator, *numbers: float) -> list[float]:
    """Maximum of each number over all processes."""
    own = torch.tensor([numbers], dtype=torch.float32, device=accelerator.device)
    return accelerator.gather(own).amax(dim=0).tolist()


def on_main(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Calls a function in the main process; all return or raise alike."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result


def check_all_have_gradients(accelerator: Accelerator, module: nn.Module) -> None:
    """Raises `ValueError` if a missing gradient would break averaging over processes."""
    ddp = accelerator.ddp_handler
    if accelerator.num_processes == 1 or ddp.find_unused_parameters or ddp.static_graph:
        return
    named = accelerator.unwrap_model(module).named_parameters()
    missing = [name for name, p in named if p.requires_grad and p.grad is None]
    if missing:
        raise ValueError(
            f"no gradient reached {', '.join(missing[:3])}{' and more' * (len(missing) > 3)}: "
            "with several processes set find_unused_parameters=True (somewhat slower), or freeze "
            "them with requires_grad_(False)"
        )


@contextmanager
def lost_process_errors(accelerator: Accelerator) -> Iterator[None]:
    """Converts errors of collective operations to `LostProcess`."""
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes > 1 and COLLECTIVE_ERROR.search(str(error)):
            raise LostProcess(
                f"process {accelerator.process_index} of {accelerator.num_processes} lost the "
                "connection to another one, which died, was killed (out of memory?) or hangs: look "
                "for the first error in the output of all processes. Training stops; to continue "
                'from the last checkpoint: trainer.train(resume="auto"), or --resume auto'
            ) from error
        raise

"""Two steps of everything that a training does, undone again."""

import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from magvit2_pytorch.memory import peak_memory, total_memory
from magvit2_pytorch.metrics import bits_per_pixel
from magvit2_pytorch.training.datasets import training_batches
from magvit2_pytorch.training.latent_statistics import record_latents
from magvit2_pytorch.training.meters import Meters
from magvit2_pytorch.training.mixed import images_per_batch
from magvit2_pytorch.training.plan import Plan
from magvit2_pytorch.training.plots import plot_curves
from magvit2_pytorch.training.processes import largest, on_main
from magvit2_pytorch.training.state import load_state
from magvit2_pytorch.training.validation import validate, write_examples
from magvit2_pytorch.types import Clips

if TYPE_CHECKING:
    from magvit2_pytorch.training.trainer import VideoTokenizerTrainer


class Measured(NamedTuple):
    """What the trial gave: seconds, bytes."""

    clip: tuple[int, int, int]
    step_s: float
    data_wait: float
    peak_memory: int
    num_skipped_steps: int
    validation_s: float
    save_s: float
    checkpoint_bytes: int
    pictures_bytes: int
    """Of one validation."""
    tokenizer_bytes: int
    held_memory: dict[str, int]


def dry_run(trainer: "VideoTokenizerTrainer") -> Plan:
    """Tries all that training will do, then puts everything back as it was.

    Two optimizer steps on clips and two on images, the first of them with everything that runs
    only now and then or later: discriminators, gradient penalty. Then a validation of one clip, a
    checkpoint, and what the end of a training writes, in a temporary folder beside the checkpoints,
    so that a disk without room or permission shows itself now. Whatever training would raise is
    raised here, such as values out of range; `MemoryError` where a GPU is too small.
    """
    try:
        with _temporary_folder(trainer) as folder, _unchanged(trainer, folder):
            measured = _try_everything(trainer, folder)
    except torch.cuda.OutOfMemoryError as error:
        raise MemoryError(
            f"two steps do not fit into the memory of {trainer.accelerator.device}: lower "
            f"batch_size from {trainer.config.batch_size} and raise grad_accum_every ({error})"
        ) from error
    return _plan(trainer, measured)


# What must not change


@contextmanager
def _temporary_folder(trainer: "VideoTokenizerTrainer") -> Iterator[Path]:
    """On the disk of the checkpoints, the same in all processes."""
    place = _existing_parent(trainer.checkpoints_folder)
    accelerator = trainer.accelerator
    folder = on_main(accelerator, lambda: Path(tempfile.mkdtemp(prefix=".dry-run-", dir=place)))
    try:
        yield folder
        accelerator.wait_for_everyone()  # others may still read what the first one removes
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(folder)


@contextmanager
def _unchanged(trainer: "VideoTokenizerTrainer", folder: Path) -> Iterator[None]:
    """Puts state and random generators back, by way of a checkpoint as training writes them."""
    skips = [trainer.update.skips, *(adversary.skips for adversary in trainer.adversaries)]
    in_a_row = [skip.in_a_row for skip in skips]
    drawn = random.getstate(), np.random.get_state()
    device = trainer.accelerator.device
    trainer.save(folder / "before")
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        for optimizer in (*trainer.optimizers, *(a.optimizer for a in trainer.adversaries)):
            optimizer.zero_grad(set_to_none=True)
        trainer.step, trainer.elapsed_s = trainer.state.restore(load_state(folder / "before"))
        for skip, number in zip(skips, in_a_row, strict=True):
            skip.in_a_row = number


# The trial


def _try_everything(trainer: "VideoTokenizerTrainer", folder: Path) -> Measured:
    config, accelerator = trainer.config, trainer.accelerator
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    skipped_before = trainer.update.skips.total
    clip, speed = _two_steps(trainer, trainer.data, config.batch_size)
    step_s, waited_s = 1 / speed["steps_per_s"], speed["data_wait"] / speed["steps_per_s"]
    if trainer.images is not None:
        _, speed = _two_steps(trainer, trainer.images, images_per_batch(config))
        share = config.image_frac
        step_s = (1 - share) * step_s + share / speed["steps_per_s"]
        waited_s = (1 - share) * waited_s + share * speed["data_wait"] / speed["steps_per_s"]
    num_skipped_steps = trainer.update.skips.total - skipped_before

    validation_s = _validate(trainer, folder / "pictures")
    held_memory = _held_memory(trainer)
    started = time.monotonic()
    trainer.save(folder / "checkpoint")
    save_s = time.monotonic() - started
    _finish(trainer, folder)
    return Measured(
        clip=clip,
        step_s=step_s,
        data_wait=waited_s / step_s,
        peak_memory=round(*largest(accelerator, float(peak_memory(accelerator.device)))),
        num_skipped_steps=num_skipped_steps,
        validation_s=validation_s,
        save_s=save_s,
        checkpoint_bytes=_bytes_below(folder / "checkpoint"),
        pictures_bytes=_bytes_below(folder / "pictures"),
        tokenizer_bytes=_bytes_below(folder / "tokenizer"),
        held_memory=held_memory,
    )


def _two_steps(
    trainer: "VideoTokenizerTrainer", dataset: Clips, batch_size: int
) -> tuple[tuple[int, int, int], dict[str, float | int]]:
    """Size of the clips, and the meters of the second step: the first one warms up."""
    position = trainer.step * trainer.config.grad_accum_every
    batches = training_batches(dataset, trainer.config, trainer.accelerator, position, batch_size)
    first = next(batches)
    batches = chain([first], batches)
    trainer.step = step_of_everything(trainer)
    for _ in range(2):
        _wait_for_device(trainer.accelerator)
        meters = Meters(trainer.tokenizer, trainer.accelerator)
        trainer.train_step(batches, meters)
        _wait_for_device(trainer.accelerator)
    return tuple(first.shape[2:]), meters.read()


def step_of_everything(trainer: "VideoTokenizerTrainer") -> int:
    """The next step at which discriminators run, are felt and have their gradient penalty."""
    config = trainer.config
    if not trainer.adversaries:
        return trainer.step
    step = max(trainer.step, config.adversarial_start_step)
    while config.gradient_penalty_weight > 0 and not trainer.adversaries[0].penalizes(step):
        step += 1
    return step


def _validate(trainer: "VideoTokenizerTrainer", folder: Path) -> float:
    """Seconds of a validation, from one clip on each process."""
    config, accelerator = trainer.config, trainer.accelerator
    one_each = replace(config, num_valid_clips=accelerator.num_processes)
    total_s = 0.0
    for kind, held_out in {"clip": trainer.valid_data, "image": trainer.valid_images}.items():
        if held_out is None:
            continue
        started = time.monotonic()
        tokenizer, perceptual = trainer.ema_tokenizer, trainer.objective.perceptual
        found = validate(tokenizer, held_out, one_each, accelerator, perceptual)
        if accelerator.is_main_process:
            write_examples(found.examples, folder, kind, config.fps)
        num_clips = min(len(held_out), config.num_valid_clips)
        total_s += (time.monotonic() - started) * -(-num_clips // accelerator.num_processes)
    return total_s


def _finish(trainer: "VideoTokenizerTrainer", folder: Path) -> None:
    config, accelerator = trainer.config, trainer.accelerator
    num_clips = min(config.num_latent_statistics_clips, accelerator.num_processes)
    config = replace(config, num_latent_statistics_clips=num_clips)
    record_latents(trainer.ema_tokenizer, trainer.data, config)
    if accelerator.is_main_process:
        trainer.ema_tokenizer.save_pretrained(folder / "tokenizer")
        plot_curves([{"step": 1, "loss": 0.0}], folder / "curves.png")


def _wait_for_device(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)


# What it says of the run


def _plan(trainer: "VideoTokenizerTrainer", measured: Measured) -> Plan:
    config, tokenizer = trainer.config, trainer.tokenizer
    num_steps, duration_s = _time(trainer, measured)
    num_validations = -(-num_steps // config.validate_every_step)
    num_checkpoints = 1 + num_steps // config.checkpoint_every_step
    if config.keep_checkpoints is not None:
        # Beside the newest ones, the best one, and another while it is written.
        num_checkpoints = min(num_checkpoints, config.keep_checkpoints) + 2
    grid = tokenizer.latent_grid(*measured.clip)
    bits = tokenizer.quantizer.bits_per_position
    modules = {"tokenizer": tokenizer}
    modules |= {f"{a.name} discriminator": a.discriminator for a in trainer.adversaries}
    if trainer.objective.perceptual is not None:
        modules["perceptual network"] = trainer.objective.perceptual
    return Plan(
        config=config,
        device=str(trainer.accelerator.device),
        num_processes=trainer.accelerator.num_processes,
        parameters={n: sum(p.numel() for p in m.parameters()) for n, m in modules.items()},
        held_memory=measured.held_memory,
        peak_memory=measured.peak_memory,
        total_memory=total_memory(trainer.accelerator.device),
        clip=measured.clip,
        latent_grid=grid,
        num_codebooks=tokenizer.num_codebooks,
        codebook_size=tokenizer.codebook_size,
        bits_per_pixel=None if bits is None else bits_per_pixel(bits, grid, measured.clip),
        num_clips=len(trainer.data),
        num_images=0 if trainer.images is None else len(trainer.images),
        num_valid_clips=sum(len(x) for x in (trainer.valid_data, trainer.valid_images) if x),
        num_skipped_files=sum(
            len(getattr(x, "skipped", ())) for x in (trainer.data, trainer.images)
        ),
        steps_per_s=1 / measured.step_s,
        data_wait=measured.data_wait,
        num_skipped_steps=measured.num_skipped_steps,
        num_steps=num_steps,
        duration_s=duration_s,
        num_validations=num_validations,
        checkpoint_bytes=measured.checkpoint_bytes,
        disk_bytes=num_checkpoints * measured.checkpoint_bytes
        + num_validations * measured.pictures_bytes
        + measured.tokenizer_bytes,
        free_bytes=shutil.disk_usage(_existing_parent(trainer.checkpoints_folder)).free,
    )


def _time(trainer: "VideoTokenizerTrainer", measured: Measured) -> tuple[int, float]:
    """Steps to come, and seconds for all of them with validations and checkpoints."""
    config = trainer.config
    num_steps = config.num_train_steps - trainer.step
    per_step_s = measured.step_s + measured.save_s / config.checkpoint_every_step
    # As long as a run gets better, every validation saves too.
    per_step_s += (measured.validation_s + measured.save_s) / config.validate_every_step
    if config.max_duration_s is not None:
        left_s = config.max_duration_s - trainer.elapsed_s
        num_steps = max(0, min(num_steps, int(left_s / per_step_s)))
    at_the_end_s = measured.validation_s + measured.save_s
    return num_steps, num_steps * per_step_s + at_the_end_s


def _held_memory(trainer: "VideoTokenizerTrainer") -> dict[str, int]:
    weights = _bytes_of(trainer.tokenizer)
    held = {
        "weights": weights,
        "gradients": weights,
        "moments": sum(map(_bytes_of_moments, trainer.optimizers)),
        "average": _bytes_of(trainer.ema.ema_model),
    }
    for adversary in trainer.adversaries:
        held[f"{adversary.name} discriminator"] = 2 * _bytes_of(
            adversary.discriminator
        ) + _bytes_of_moments(adversary.optimizer)
    if trainer.objective.perceptual is not None:
        held["perceptual network"] = _bytes_of(trainer.objective.perceptual)
    return held


def _bytes_of(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _bytes_of_moments(optimizer: Optimizer) -> int:
    state: Any = optimizer.state_dict()["state"]
    return sum(x.nbytes for moments in state.values() for x in moments.values() if _is_tensor(x))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _existing_parent(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())

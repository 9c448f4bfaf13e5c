"""Dry run of a training: two steps, then the state is restored."""

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

from magvit2_pytorch.metrics.codebook import bits_per_pixel
from magvit2_pytorch.runtime import peak_memory, total_memory
from magvit2_pytorch.training.batches import images_per_batch, training_batches
from magvit2_pytorch.training.latent_statistics import record_latents
from magvit2_pytorch.training.meters import Meters, plot_curves
from magvit2_pytorch.training.plan import Plan
from magvit2_pytorch.training.processes import max_over_processes, on_main
from magvit2_pytorch.training.state import load_state
from magvit2_pytorch.training.validation import validate, write_examples
from magvit2_pytorch.types import Clips

if TYPE_CHECKING:
    from magvit2_pytorch.training.trainer import VideoTokenizerTrainer


class Measurements(NamedTuple):
    """Measurements of the dry run, in seconds and bytes."""

    clip: tuple[int, int, int]
    step_s: float
    data_wait: float
    peak_memory: int
    num_skipped_steps: int
    validation_s: float
    save_s: float
    checkpoint_bytes: int
    pictures_bytes: int
    """Bytes of the pictures of one validation."""
    tokenizer_bytes: int
    held_memory: dict[str, int]


def dry_run(trainer: "VideoTokenizerTrainer") -> Plan:
    """Runs every part of a training once, then restores the previous state.

    Takes two optimizer steps on clips and two on images. The first of each includes parts that run
    later or at some steps only: discriminators and gradient penalty. Then validates one clip, saves
    a checkpoint and writes the final outputs, in a temporary folder beside the checkpoints, so that
    missing disk space or permissions show now. Raises what training would raise, such as errors
    about values out of range, and `MemoryError` if the GPU memory is too small.
    """
    try:
        with _temporary_folder(trainer) as folder, _restoring_state(trainer, folder):
            results = _run_everything(trainer, folder)
    except torch.cuda.OutOfMemoryError as error:
        raise MemoryError(
            f"two steps do not fit into the memory of {trainer.accelerator.device}: lower "
            f"batch_size from {trainer.config.batch_size} and raise grad_accum_every ({error})"
        ) from error
    return _plan(trainer, results)


# Restoring the state


@contextmanager
def _temporary_folder(trainer: "VideoTokenizerTrainer") -> Iterator[Path]:
    """A folder on the checkpoints' disk, the same in all processes."""
    parent = _existing_parent(trainer.checkpoints_folder)
    accelerator = trainer.accelerator
    folder = on_main(accelerator, lambda: Path(tempfile.mkdtemp(prefix=".dry-run-", dir=parent)))
    try:
        yield folder
        accelerator.wait_for_everyone()  # others may still read what the main process removes
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(folder)


@contextmanager
def _restoring_state(trainer: "VideoTokenizerTrainer", folder: Path) -> Iterator[None]:
    """Restores state and random generators from a checkpoint at the end."""
    skips = [trainer.optimization.skips, *(d.skips for d in trainer.discriminators)]
    in_a_row = [skip.in_a_row for skip in skips]
    random_states = random.getstate(), np.random.get_state()
    device = trainer.accelerator.device
    trainer.save(folder / "before")
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(random_states[0])
        np.random.set_state(random_states[1])
        for optimizer in (*trainer.optimizers, *(d.optimizer for d in trainer.discriminators)):
            optimizer.zero_grad(set_to_none=True)
        trainer.step, trainer.elapsed_s = trainer.state.restore(load_state(folder / "before"))
        for skip, number in zip(skips, in_a_row, strict=True):
            skip.in_a_row = number


# Measuring


def _run_everything(trainer: "VideoTokenizerTrainer", folder: Path) -> Measurements:
    config, accelerator = trainer.config, trainer.accelerator
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    skipped_before = trainer.optimization.skips.total
    clip, speed = _two_steps(trainer, trainer.data, config.batch_size)
    step_s, waited_s = 1 / speed["steps_per_s"], speed["data_wait"] / speed["steps_per_s"]
    if trainer.images is not None:
        _, speed = _two_steps(trainer, trainer.images, images_per_batch(config))
        share = config.image_frac
        step_s = (1 - share) * step_s + share / speed["steps_per_s"]
        waited_s = (1 - share) * waited_s + share * speed["data_wait"] / speed["steps_per_s"]
    num_skipped_steps = trainer.optimization.skips.total - skipped_before

    validation_s = _validate(trainer, folder / "pictures")
    held_memory = _held_memory(trainer)
    started = time.monotonic()
    trainer.save(folder / "checkpoint")
    save_s = time.monotonic() - started
    _write_outputs(trainer, folder)
    return Measurements(
        clip=clip,
        step_s=step_s,
        data_wait=waited_s / step_s,
        peak_memory=round(*max_over_processes(accelerator, float(peak_memory(accelerator.device)))),
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
    """Clip size and values of the second step, after a warm-up."""
    position = trainer.step * trainer.config.grad_accum_every
    batches = training_batches(dataset, trainer.config, trainer.accelerator, position, batch_size)
    first = next(batches)
    batches = chain([first], batches)
    trainer.step = find_full_step(trainer)
    for _ in range(2):
        _wait_for_device(trainer.accelerator)
        meters = Meters(trainer.tokenizer, trainer.accelerator)
        trainer.train_step(batches, meters)
        _wait_for_device(trainer.accelerator)
    return tuple(first.shape[2:]), meters.read()


def find_full_step(trainer: "VideoTokenizerTrainer") -> int:
    """The next step with discriminators, adversarial losses and gradient penalties."""
    config = trainer.config
    if not trainer.discriminators:
        return trainer.step
    step = max(trainer.step, config.adversarial_start_step)
    while config.gradient_penalty_weight > 0 and not trainer.discriminators[0].has_penalty(step):
        step += 1
    return step


def _validate(trainer: "VideoTokenizerTrainer", folder: Path) -> float:
    """Estimated seconds of a validation, from one clip on each process."""
    config, accelerator = trainer.config, trainer.accelerator
    one_each = replace(config, num_valid_clips=accelerator.num_processes)
    total_s = 0.0
    for kind, held_out in {"clip": trainer.valid_data, "image": trainer.valid_images}.items():
        if held_out is None:
            continue
        started = time.monotonic()
        tokenizer, perceptual = trainer.ema_tokenizer, trainer.objective.perceptual
        validation = validate(tokenizer, held_out, one_each, accelerator, perceptual)
        if accelerator.is_main_process:
            write_examples(validation.examples, folder, kind, config.fps)
        num_clips = min(len(held_out), config.num_valid_clips)
        total_s += (time.monotonic() - started) * -(-num_clips // accelerator.num_processes)
    return total_s


def _write_outputs(trainer: "VideoTokenizerTrainer", folder: Path) -> None:
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


# Planning


def _plan(trainer: "VideoTokenizerTrainer", results: Measurements) -> Plan:
    config, tokenizer = trainer.config, trainer.tokenizer
    num_steps, duration_s = _duration(trainer, results)
    num_validations = -(-num_steps // config.validate_every_step)
    num_checkpoints = 1 + num_steps // config.checkpoint_every_step
    if config.keep_checkpoints is not None:
        # The newest ones, the best one, and another one while it is written.
        num_checkpoints = min(num_checkpoints, config.keep_checkpoints) + 2
    grid = tokenizer.latent_grid(*results.clip)
    bits = tokenizer.quantizer.bits_per_position
    modules = {"tokenizer": tokenizer}
    modules |= {f"{d.name} discriminator": d.network for d in trainer.discriminators}
    if trainer.objective.perceptual is not None:
        modules["perceptual network"] = trainer.objective.perceptual
    return Plan(
        config=config,
        device=str(trainer.accelerator.device),
        num_processes=trainer.accelerator.num_processes,
        parameters={n: sum(p.numel() for p in m.parameters()) for n, m in modules.items()},
        held_memory=results.held_memory,
        peak_memory=results.peak_memory,
        total_memory=total_memory(trainer.accelerator.device),
        clip=results.clip,
        latent_grid=grid,
        num_codebooks=tokenizer.num_codebooks,
        codebook_size=tokenizer.codebook_size,
        bits_per_pixel=None if bits is None else bits_per_pixel(bits, grid, results.clip),
        num_clips=len(trainer.data),
        num_images=0 if trainer.images is None else len(trainer.images),
        num_valid_clips=sum(len(x) for x in (trainer.valid_data, trainer.valid_images) if x),
        num_skipped_files=sum(
            len(getattr(x, "skipped", ())) for x in (trainer.data, trainer.images)
        ),
        steps_per_s=1 / results.step_s,
        data_wait=results.data_wait,
        num_skipped_steps=results.num_skipped_steps,
        num_steps=num_steps,
        duration_s=duration_s,
        num_validations=num_validations,
        checkpoint_bytes=results.checkpoint_bytes,
        disk_bytes=num_checkpoints * results.checkpoint_bytes
        + num_validations * results.pictures_bytes
        + results.tokenizer_bytes,
        free_bytes=shutil.disk_usage(_existing_parent(trainer.checkpoints_folder)).free,
    )


def _duration(trainer: "VideoTokenizerTrainer", results: Measurements) -> tuple[int, float]:
    """Remaining steps, and seconds for them with validations and checkpoints."""
    config = trainer.config
    num_steps = config.num_train_steps - trainer.step
    per_step_s = results.step_s + results.save_s / config.checkpoint_every_step
    # While a run improves, every validation also saves a checkpoint.
    per_step_s += (results.validation_s + results.save_s) / config.validate_every_step
    if config.max_duration_s is not None:
        remaining_s = config.max_duration_s - trainer.elapsed_s
        num_steps = max(0, min(num_steps, int(remaining_s / per_step_s)))
    final_s = results.validation_s + results.save_s
    return num_steps, num_steps * per_step_s + final_s


def _held_memory(trainer: "VideoTokenizerTrainer") -> dict[str, int]:
    weights = _bytes_of(trainer.tokenizer)
    held = {
        "weights": weights,
        "gradients": weights,
        "moments": sum(map(_bytes_of_moments, trainer.optimizers)),
        "average": _bytes_of(trainer.ema.ema_model),
    }
    for discriminator in trainer.discriminators:
        weights = _bytes_of(discriminator.network)
        moments = _bytes_of_moments(discriminator.optimizer)
        held[f"{discriminator.name} discriminator"] = 2 * weights + moments
    if trainer.objective.perceptual is not None:
        held["perceptual network"] = _bytes_of(trainer.objective.perceptual)
    return held


def _bytes_of(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _bytes_of_moments(optimizer: Optimizer) -> int:
    state: Any = optimizer.state_dict()["state"]
    values = [value for moments in state.values() for value in moments.values()]
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _existing_parent(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())

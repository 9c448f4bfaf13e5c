"""Faults in one of two processes, one after the other; each process saves its results."""

import os
import shutil
import signal
from pathlib import Path

import torch
from torch import nn

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.training import trainer as trainer_module
from magvit2_pytorch.training.checkpoints import CheckpointNotSaved
from tests.conftest import QUANTIZERS, SMALL
from tests.training import lost_worker
from tests.training.conftest import clips
from tests.training.two_processes_worker import ADVERSARIAL, LAYERS


def build(folder: Path, **options) -> VideoTokenizerTrainer:
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(**SMALL, **QUANTIZERS["fsq"], layers=LAYERS)
    defaults = dict(
        dataset=clips(8),
        batch_size=2,
        num_train_steps=4,
        learning_rate=1e-3,
        warmup_steps=0,
        log_every_step=1,
        results_folder=str(folder),
        checkpoints_folder=str(folder / "checkpoints"),
        progress_bar=False,
    )
    return VideoTokenizerTrainer(tokenizer, **(defaults | options))


def weights(trainer: VideoTokenizerTrainer) -> dict[str, torch.Tensor]:
    state, _ = trainer.state.gather(trainer.step, 0.0)
    return {name: value.clone() for name, value in state.items()}


def before_step(trainer: VideoTokenizerTrainer, step: int, rank: int, do) -> None:
    """Has one process do something before it takes a step."""
    take = trainer.train_step

    def train_step(*args):
        if (trainer.step, trainer.accelerator.process_index) == (step, rank):
            do()
        take(*args)

    trainer.train_step = train_step


def nan_in_one_process(folder: Path) -> dict:
    """Rank 1 has a NaN in its loss at step 1, rank 0 an infinite one of no gradient at step 2."""
    trainer = build(folder, **ADVERSARIAL, max_skipped_steps=3)
    objective, rank = trainer.objective, trainer.accelerator.process_index
    wrong = {(1, 1): (float("nan"), 0.0), (0, 2): (1.0, float("inf"))}

    def broken(real, out, step, generator):
        factor, more = wrong.get((rank, step), (1.0, 0.0))
        loss = objective(real, out, step, generator)
        return loss._replace(recon_loss=loss.recon_loss * factor + more)

    trainer.task.objective = broken
    before: dict[int, dict] = {}
    take = trainer.train_step

    def train_step(*args):
        before[trainer.step] = weights(trainer)
        take(*args)

    trainer.train_step = train_step
    trainer.train()
    # Discriminators had good numbers, and learned.
    mine = {n for n in before[1] if not n.startswith("video_discriminator")}
    same = all(torch.equal(before[1][n], before[3][n]) for n in mine)
    return {"skipped": trainer.optimization.skips.total, "same": same, "after": weights(trainer)}


def interrupted_in_one_process(folder: Path) -> dict:
    trainer = build(folder, num_train_steps=50)
    before_step(trainer, 2, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        trainer.train()
    except KeyboardInterrupt:
        return {"step": trainer.step, "saved": list(trainer.checkpoints.steps())}
    return {}


def full_disk(folder: Path) -> dict:
    """Only the main process writes, and both hear of it."""
    trainer = build(folder, checkpoint_every_step=2, validate_every_step=100)
    whole = shutil.disk_usage
    full = lambda path: whole(path)._replace(free=10)  # noqa: E731
    before_step(trainer, 3, 0, lambda: setattr(shutil, "disk_usage", full))
    try:
        trainer.train()
    except CheckpointNotSaved as error:
        return {"said": str(error), "saved": list(trainer.checkpoints.steps())}
    finally:
        shutil.disk_usage = whole
    return {}


def damaged(folder: Path) -> dict:
    """Both go on from the same one where the last is damaged."""
    trainer = build(folder, checkpoint_every_step=2)
    trainer.train()
    accelerator = trainer.accelerator
    if accelerator.is_main_process:
        os.truncate(trainer.checkpoints.path(4) / "tensors.safetensors", 1000)
    accelerator.wait_for_everyone()
    again = build(folder, num_train_steps=3)
    again.train(resume="auto")
    return {"step": again.step, "after": weights(again)}


def idle(folder: Path, **options) -> VideoTokenizerTrainer:
    tokenizer = VideoTokenizer(**SMALL, **QUANTIZERS["fsq"], layers=LAYERS)
    tokenizer.decoder.layers[0].idle = nn.Parameter(torch.zeros(2))
    return VideoTokenizerTrainer(
        tokenizer,
        dataset=clips(8),
        num_train_steps=3,
        results_folder=str(folder),
        checkpoints_folder=str(folder / "checkpoints"),
        progress_bar=False,
        **options,
    )


def parameter_without_gradient(folder: Path) -> dict:
    told = idle(folder / "told", find_unused_parameters=True)
    told.train()
    trainer = idle(folder / "untold")
    try:
        trainer.train()
    except ValueError as error:
        return {"said": str(error), "step": trainer.step, "told": told.step, "after": weights(told)}
    return {}


SCENES = {
    scene.__name__: scene
    for scene in (
        nan_in_one_process,
        interrupted_in_one_process,
        full_disk,
        damaged,
        parameter_without_gradient,
    )
}


def main(folder: Path) -> None:
    trainer_module.plot_curves = lambda *_: None  # slow, and not in question
    results = {name: scene(folder / name) for name, scene in SCENES.items()}
    results["num_processes"] = torch.distributed.get_world_size()
    torch.save(results, folder / f"rank-{os.environ['RANK']}.pt")
    # The last one ends both.
    lost_worker.main(folder / "killed", "kill")

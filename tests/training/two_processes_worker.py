"""Short trainings of two processes; what each ends with goes to a file."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer
from magvit2_pytorch.training import trainer as trainer_module
from tests.conftest import QUANTIZERS, SMALL
from tests.training.conftest import clips
from tests.training.denoiser import denoising

LAYERS = ("compress_space", "residual", "compress_time")

ADVERSARIAL = dict(
    video_adversarial_weight=0.1,
    video_discriminator=dict(dim=4, dim_mults=(1, 2)),
    gradient_penalty_weight=0.1,
    gradient_penalty_every=2,
    lecam_loss_weight=0.01,
)


def train(
    folder: Path, batch_size: int, kind: str, resume: Path | None = None, **options
) -> VideoTokenizerTrainer:
    torch.manual_seed(0 if resume is None else 1)
    torch.set_num_threads(1)
    tokenizer = VideoTokenizer(**SMALL, **QUANTIZERS["lfq"], layers=LAYERS)
    trainer = VideoTokenizerTrainer(
        tokenizer,
        # Seven clips and a batch of four: epochs end within a batch.
        dataset=clips(8),
        batch_size=batch_size,
        num_train_steps=5,
        learning_rate=1e-3,
        optimizer="adamw",
        warmup_steps=0,
        validate_every_step=2,
        checkpoint_every_step=3,
        log_every_step=1,
        results_folder=str(folder),
        checkpoints_folder=str(folder / "checkpoints"),
        progress_bar=False,
        **(ADVERSARIAL if kind == "adversarial" else {}),
        **options,
    )
    if trainer.accelerator.num_processes > 1:
        # Tried before, it changes nothing: two processes still equal one that never did.
        plan = trainer.dry_run()
        assert (plan.num_processes, plan.examples_per_step, plan.num_steps) == (
            2,
            2 * batch_size,
            5,
        )
        if trainer.accelerator.is_main_process:
            assert not list(folder.glob("*"))
    trainer.train(resume)
    return trainer


def all_state(trainer: VideoTokenizerTrainer) -> dict[str, torch.Tensor]:
    """Weights, averages, moments and discriminators: what a checkpoint has."""
    return trainer.state.gather(trainer.step, trainer.elapsed_s)[0]


def main(folder: Path, kind: str) -> None:
    trainer = train(folder, 2, kind)
    checkpoint = folder / "checkpoints" / "step-3"
    resumed = train(folder / "resumed", 2, kind, resume=checkpoint)
    result = {
        "num_processes": trainer.accelerator.num_processes,
        "step": trainer.step,
        "tokenizer": trainer.tokenizer.state_dict(),
        "adversary": {
            f"{name}.{n}": value
            for name, optimization in list(trainer.optimizations.items())[1:]
            for n, value in optimization.state_dict().items()
        },
        "ema": trainer.ema_tokenizer.state_dict(),
        "whole": all_state(trainer),
        "resumed": all_state(resumed),
    }
    torch.save(result, folder / f"rank-{trainer.accelerator.process_index}.pt")


def denoise(folder: Path) -> None:
    """The same for the second task."""
    trainer = denoising(folder, batch_size=2)
    trainer.train()
    state = trainer.state.gather(trainer.step, 0.0)[0]
    torch.save(state, folder / f"rank-{trainer.accelerator.process_index}.pt")


def run(folder: Path, kind: str) -> None:
    """All of it, in each process."""
    # Slow, and not in question; tests that call `train` themselves have a fixture for it.
    trainer_module.plot_curves = lambda *_: None
    main(folder, kind)
    denoise(folder / "denoiser")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])

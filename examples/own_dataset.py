"""Train on generated clips: any dataset of `c t h w` tensors in [-1, 1] works."""

import torch
from torch.utils.data import Dataset

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer


class MovingWaves(Dataset):
    """Coloured waves, each with its own speed and direction."""

    def __init__(self, num_clips: int, num_frames: int = 9, size: int = 32, seed: int = 0):
        self.num_clips, self.num_frames, self.size, self.seed = num_clips, num_frames, size, seed

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed + number)
        speed, down, across, phase = torch.rand(4, 3, 1, 1, 1, generator=generator) * 6
        t = torch.linspace(0, 1, self.num_frames)[:, None, None]
        y = torch.linspace(0, 1, self.size)[:, None]
        x = torch.linspace(0, 1, self.size)
        return torch.sin(speed * t + down * y + across * x + phase)


def main(num_train_steps: int = 200):
    tokenizer = VideoTokenizer(
        image_size=32,
        init_dim=32,
        patch_size=2,
        layers=("residual", "compress_space", "compress_time", "residual"),
        use_fsq=True,
        fsq_levels=(8, 8, 8),
    )
    trainer = VideoTokenizerTrainer(
        tokenizer,
        dataset=MovingWaves(500),
        valid_dataset=MovingWaves(16, seed=10_000),
        batch_size=8,
        num_train_steps=num_train_steps,
        learning_rate=1e-3,
        results_folder="results/waves",
        checkpoints_folder="results/waves/checkpoints",
    )
    trainer.train()
    print(f"{trainer.validate()['valid/psnr']:.2f} dB on held-out waves")


if __name__ == "__main__":
    main()

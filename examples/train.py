"""Train a tokenizer on a folder of videos.

python examples/train.py path/to/videos --steps 2000
"""

import argparse

from magvit2_pytorch import VideoTokenizer, VideoTokenizerTrainer, recipe


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output", default="tokenizer")
    args = parser.parse_args()

    tokenizer = VideoTokenizer.from_preset(args.preset)
    options = {**recipe(args.preset), "num_train_steps": args.steps}
    trainer = VideoTokenizerTrainer(tokenizer, dataset_folder=args.folder, **options)
    trainer.train()
    trainer.ema_tokenizer.save_pretrained(args.output)
    print(f"{trainer.validate()['valid/psnr']:.2f} dB on held-out clips, saved to {args.output}/")


if __name__ == "__main__":
    main()

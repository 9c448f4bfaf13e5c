"""One measurement of one implementation, in a process (and an environment) of its own.

Run by `upstream.py`; prints one line of JSON: seconds of each repetition and peak memory.
"""

import argparse
import json
import resource
import tempfile
import time
from contextlib import nullcontext

import torch

README_LAYERS = (
    "residual",
    "compress_space",
    ("consecutive_residual", 2),
    "compress_space",
    ("consecutive_residual", 2),
    "linear_attend_space",
    "compress_space",
    ("consecutive_residual", 2),
    "attend_space",
    "compress_time",
    ("consecutive_residual", 2),
    "compress_time",
    ("consecutive_residual", 2),
    "attend_time",
)
CONFIGS = {
    "readme": dict(image_size=128, init_dim=64, max_dim=512, codebook_size=1024),
    "small": dict(image_size=64, init_dim=16, max_dim=512, codebook_size=1024),
}


def build(implementation: str, config: str, use_gan: bool):
    """The tokenizer; of the other implementation without what it would only carry along."""
    from magvit2_pytorch import VideoTokenizer

    extra = {}
    if implementation == "magvit2-pytorch 0.5.1":
        extra = dict(use_gan=use_gan, perceptual_loss_weight=0.0)
    torch.manual_seed(0)
    return VideoTokenizer(**CONFIGS[config], layers=README_LAYERS, **extra)


def training_loss(implementation: str, tokenizer, video, precision: str):
    """Reconstruction and quantizer losses."""
    if implementation == "magvit2-pytorch 0.5.1":
        return tokenizer(video, return_loss=True)[0]
    from magvit2_pytorch.training.objective import Autoencoder, Objective

    out = Autoencoder(tokenizer, precision)(video)
    return Objective(tokenizer.quantizer)(video, out, step=0).total


def adversarial_step(implementation: str, tokenizer, video, precision: str):
    """A step of the tokenizer and one of a discriminator of random frames, without penalty."""
    if implementation == "magvit2-pytorch 0.5.1":
        of_discriminator = list(tokenizer.discr_parameters())
        known = {id(parameter) for parameter in of_discriminator}
        own = [p for p in tokenizer.parameters() if id(p) not in known]
        both = [torch.optim.AdamW(parameters, lr=1e-5) for parameters in (own, of_discriminator)]

        def their_step():
            for optimizer, options in zip(
                both,
                (
                    dict(return_loss=True),
                    dict(return_discr_loss=True, apply_gradient_penalty=False),
                ),
                strict=True,
            ):
                tokenizer(video, **options)[0].backward()
                optimizer.step()
                optimizer.zero_grad()

        return their_step

    from magvit2_pytorch import VideoTokenizerTrainer
    from magvit2_pytorch.training.meters import Meters

    trainer = VideoTokenizerTrainer(
        tokenizer,
        dataset=list(video),
        valid_dataset=list(video),
        batch_size=len(video),
        precision=precision,
        learning_rate=1e-5,
        frame_adversarial_weight=1.0,
        results_folder=tempfile.mkdtemp(),
    )
    meters = Meters(tokenizer, trainer.accelerator)
    return lambda: trainer.train_step(iter([video]), meters)


def operation(implementation: str, name: str, tokenizer, video, precision: str):
    """What is timed, as a function without arguments."""
    if name == "encode":
        tokenizer.eval()
        return torch.inference_mode()(lambda: tokenizer.tokenize(video))
    if name == "decode":
        tokenizer.eval()
        codes = tokenizer.tokenize(video)
        return torch.inference_mode()(lambda: tokenizer.decode_from_code_indices(codes))
    tokenizer.train()
    if name == "adversarial":
        return adversarial_step(implementation, tokenizer, video, precision)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-5)

    def train_step():
        training_loss(implementation, tokenizer, video, precision).backward()
        optimizer.step()
        optimizer.zero_grad()

    return train_step


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("implementation")
    parser.add_argument("operation", choices=("encode", "decode", "train", "adversarial"))
    parser.add_argument("--config", choices=tuple(CONFIGS), default="readme")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()

    tokenizer = build(args.implementation, args.config, args.operation == "adversarial")
    size = CONFIGS[args.config]["image_size"]
    video = torch.rand(args.batch, 3, args.frames, size, size) * 2 - 1
    bf16 = args.precision == "bf16"
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        run = operation(args.implementation, args.operation, tokenizer, video, args.precision)
        run()
        seconds = []
        for _ in range(args.repeat):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    parameters = sum(p.numel() for p in tokenizer.parameters())
    print(json.dumps(dict(seconds=seconds, peak_mb=peak, parameters=parameters)))


if __name__ == "__main__":
    main()

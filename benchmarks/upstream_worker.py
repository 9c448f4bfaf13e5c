"""One measurement of one implementation, in a process (and an environment) of its own.

Run by `upstream.py`; prints one line of JSON: seconds of each repetition, peak memory, parameters,
and the floating-point operations of our encode and decode.
"""

import argparse
import json
import tempfile
from contextlib import nullcontext
from importlib import import_module

import torch
from side_by_side import measure, peak_mb

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
    "readme": dict(init_dim=64, max_dim=512, codebook_size=1024),
    "small": dict(init_dim=16, max_dim=512, codebook_size=1024),
}


def build(implementation: str, config: str, size: int, use_gan: bool):
    """The tokenizer; of the other implementation without what it would only carry along."""
    from magvit2_pytorch import VideoTokenizer

    extra = {}
    if implementation == "magvit2-pytorch 0.5.1":
        extra = dict(use_gan=use_gan, perceptual_loss_weight=0.0)
    torch.manual_seed(0)
    return VideoTokenizer(**CONFIGS[config], image_size=size, layers=README_LAYERS, **extra)


def training_loss(implementation: str, tokenizer, video, precision: str):
    """Reconstruction and quantizer losses."""
    if implementation == "magvit2-pytorch 0.5.1":
        return tokenizer(video, return_loss=True)[0]
    from magvit2_pytorch.training.clip_task import Objective
    from magvit2_pytorch.training.tokenizer_task import Autoencoder
    from magvit2_pytorch.training.training_config import TrainingConfig

    out = Autoencoder(tokenizer, precision)(video)
    return Objective(tokenizer.quantizer, TrainingConfig())(video, out, step=0).total


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
    meters = Meters(trainer.task)
    return lambda: trainer.train_step(iter([video]), meters)


def streamed(stream, whole, axis: int, pieces: int):
    """A video or its codes through a stream, in pieces, as one."""
    said = [stream.push(piece) for piece in whole.split(pieces, dim=axis)] + [stream.flush()]
    return [part for part in said if part is not None]


def operation(implementation: str, name: str, tokenizer, video, precision: str, stream: bool):
    """What is timed, as a function without arguments."""
    if name in ("encode", "decode") and stream and implementation == "ours":
        tokenizer.eval()
        if name == "encode":
            return lambda: streamed(tokenizer.encode_stream(precision=precision), video, 2, 16)
        codes = tokenizer.tokenize(video)
        return lambda: streamed(tokenizer.decode_stream(precision=precision), codes, 1, 4)
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


def flops_of(tokenizer, video, name: str) -> float:
    """Operations of an encode or a decode, counted and not computed."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    with (
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        # Not `encode` and `decode`, which look at the values: fake tensors have none.
        latents, _ = tokenizer.encode_chunk(fake.from_tensor(video), last=True)
        encoding = counter.get_total_flops()
        tokenizer.decode_chunk(latents, last=True)
    return encoding if name == "encode" else counter.get_total_flops() - encoding


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("implementation")
    parser.add_argument("operation", choices=("encode", "decode", "train", "adversarial"))
    parser.add_argument("--config", choices=tuple(CONFIGS), default="readme")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoint_activations", action="store_true")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()

    import_module("torch._dynamo")  # as the first optimizer does
    imported_mb = peak_mb()
    tokenizer = build(args.implementation, args.config, args.size, args.operation == "adversarial")
    video = torch.rand(args.batch, 3, args.frames, args.size, args.size) * 2 - 1
    bf16 = args.precision == "bf16"
    flops = {}
    if args.implementation == "ours":
        if args.operation in ("encode", "decode"):
            flops["flops"] = flops_of(tokenizer, video, args.operation)
        tokenizer.checkpoint_activations(args.checkpoint_activations)
        if args.compile:
            tokenizer.compile()
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        what = (args.implementation, args.operation)
        run = operation(*what, tokenizer, video, args.precision, args.stream)
        run()
        result = measure(run, args.repeat)
    result["imported_mb"] = imported_mb
    result["parameters"] = sum(p.numel() for p in tokenizer.parameters())
    print(json.dumps(result | flops))


if __name__ == "__main__":
    main()

"""Mean and standard deviation of continuous latents, stored with the tokenizer."""

import warnings

import torch
import torch.distributed as dist
from torch import Tensor

from magvit2_pytorch.data.user_clips import share_of_clips, user_clips
from magvit2_pytorch.functional import autocast, pad_frames
from magvit2_pytorch.media.frames import check_range
from magvit2_pytorch.metrics.moments import ChannelMoments, Moments
from magvit2_pytorch.quantizers.continuous import Continuous
from magvit2_pytorch.runtime import num_processes
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.types import Clips, Latents, Precision


def measure_latents(
    tokenizer: VideoTokenizer, clips: Clips, max_clips: int = 256, precision: Precision = "fp32"
) -> Moments:
    """Measures mean and std of each latent channel and stores them.

    `normalize_latents` of the tokenizer uses them, and `save_pretrained` saves them. Training calls
    this at its end. From more than `max_clips` clips, `max_clips` are taken at even intervals.
    Clips may differ in size. Every position has the same weight. The first latent frame encodes
    one video frame and each later one `time_factor` frames, so its statistics differ: measure on
    clips like those that the diffusion model will see. With `use_kl` the latents are the means.

    With several processes all must call this; each encodes every n-th clip, and all store the same
    statistics. A constant channel gets a standard deviation of 1, with a warning. Raises
    `ValueError` if the tokenizer is discrete or conditional or there are no clips, and
    `FloatingPointError`, before anything is stored, if latents are not finite.
    """
    clips = user_clips(clips)
    if not isinstance(tokenizer.quantizer, Continuous):
        raise ValueError(
            "this tokenizer is discrete: only a tokenizer with continuous_dim has latent statistics"
        )
    if tokenizer.config.dim_cond is not None:
        raise ValueError(
            f"this tokenizer is conditional (dim_cond={tokenizer.config.dim_cond}), but clips have "
            "no condition: compute metrics.ChannelMoments of your own latents and pass them to "
            "tokenizer.quantizer.store_statistics"
        )
    first = next(share_of_clips(clips, 1), None)
    if first is None or max_clips < 1:
        number = "no" if first is None else "some"
        raise ValueError(f"{number} clips and max_clips {max_clips}: both must be at least 1")
    check_range(first)
    return _measure(tokenizer, clips, max_clips, precision)


def record_latents(
    tokenizer: VideoTokenizer, clips: Clips, max_clips: int, precision: Precision = "fp32"
) -> dict[str, float | int]:
    """Measures continuous latents after training; returns values to log."""
    if tokenizer.codebook_size is not None:
        return {}
    # A fine-tuned tokenizer may hold the statistics of its initial weights.
    tokenizer.quantizer.reset_statistics()
    if not max_clips:
        return {}
    try:
        moments = _measure(tokenizer, clips, max_clips, precision)
    except FloatingPointError as error:
        # All processes reach this line, and the tokenizer is still worth saving.
        warnings.warn(f"latent statistics: {error}", stacklevel=3)
        return {}
    return {
        "latent_abs_mean": float(moments.mean.abs().mean()),
        "latent_std": float(moments.std.mean()),
        "num_latents": moments.num_values,
    }


@torch.no_grad()
def _measure(
    tokenizer: VideoTokenizer, clips: Clips, max_clips: int, precision: Precision
) -> Moments:
    count = num_processes()
    rank = dist.get_rank() if count > 1 else 0
    accumulator, was_training = ChannelMoments(), tokenizer.training
    tokenizer.eval()
    try:
        for clip in share_of_clips(clips, max_clips, rank, count, spread=True):
            accumulator.update(_encode(tokenizer, clip, precision))
    finally:
        tokenizer.train(was_training)
    moments = accumulator.gathered().compute()
    if not (moments.mean.isfinite().all() and moments.std.isfinite().all()):
        raise FloatingPointError(
            "some latents are not finite, so no statistics were stored: try precision='fp32'"
        )
    # A standard deviation below float32 resolution counts as 0.
    float32 = torch.finfo(torch.float32)
    constant = moments.std <= (moments.mean.abs() * float32.eps).clamp(min=float32.tiny)
    if constant.any() and rank == 0:
        warnings.warn(
            f"latent channels {constant.nonzero()[:, 0].tolist()} are constant: their standard "
            "deviation is stored as 1",
            stacklevel=3,
        )
    moments = moments._replace(std=moments.std.masked_fill(constant, 1.0))
    tokenizer.quantizer.store_statistics(moments.mean, moments.std, moments.num_values)
    return moments


def _encode(tokenizer: VideoTokenizer, clip: Tensor, precision: Precision) -> Latents:
    """Latents of one clip or image, as `decode` takes them."""
    device = next(tokenizer.parameters()).device
    video = clip[None].to(device)
    with autocast(device, precision):
        # Not `encode`: it would warn about bright clips, and the range is checked already.
        frames = pad_frames(tokenizer.prepare(video, check_values=False), tokenizer.time_factor)
        latents, _ = tokenizer.encode_chunk(frames, last=True)
        return tokenizer.quantizer(latents).quantized

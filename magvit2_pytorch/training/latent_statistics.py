"""Mean and standard deviation of continuous latents, measured and kept with the tokenizer.

A diffusion model wants latents of one scale, whatever the encoder gives (W.A.L.T., arXiv
2312.06662).
"""

import warnings

import torch
import torch.distributed as dist
from jaxtyping import Bool
from torch import Tensor

from magvit2_pytorch.data import check_range
from magvit2_pytorch.functional import autocast, pad_frames
from magvit2_pytorch.metrics import ChannelMoments, Moments
from magvit2_pytorch.quantizers import Continuous
from magvit2_pytorch.tokenizer.model import VideoTokenizer
from magvit2_pytorch.training.config import TrainingConfig
from magvit2_pytorch.types import Clips, Latents, Precision


def measure_latents(
    tokenizer: VideoTokenizer,
    clips: Clips,
    max_clips: int = 256,
    precision: Precision = "fp32",
) -> Moments:
    """Measures each latent channel and stores it in the tokenizer, for `normalize_latents`.

    Training does this at its end. A folder that was trained without it gets it by

        tokenizer = VideoTokenizer.from_pretrained(folder)
        measure_latents(tokenizer, dataset)
        tokenizer.save_pretrained(folder)

    Of more than `max_clips` clips those are taken that lie evenly over the dataset. They are
    encoded one by one, so that clips of any size will do, and every position counts alike. That
    includes the first latent frame, which stands for one frame of video where each later one
    stands for `time_factor` of them: it differs in kind, and is rarer the longer the clips are. So
    measure on clips such as the diffusion model will see. With `use_kl` the latents are the means.

    With several processes each takes every n-th clip, all must call, and all store the same.
    A channel that never changes gets a standard deviation of 1, with a warning. Raises `ValueError`
    for tokenizers that are discrete or conditional and where there are no clips, and
    `FloatingPointError`, before anything is stored, on latents that are not finite.
    """
    _check(tokenizer, clips, max_clips)
    return _measure(tokenizer, clips, max_clips, precision)


def record_latents(
    tokenizer: VideoTokenizer, clips: Clips, config: TrainingConfig
) -> dict[str, float | int]:
    """What the end of a training measures of the latents, to log; nothing if they are discrete.

    `latent_abs_mean` and `latent_std` are means over channels: 0 and 1 would need no normalizing.
    """
    if tokenizer.codebook_size is not None:
        return {}
    # A tokenizer that was trained further may hold those of the weights it started from.
    tokenizer.quantizer.reset_statistics()
    if not config.num_latent_statistics_clips:
        return {}
    try:
        moments = _measure(tokenizer, clips, config.num_latent_statistics_clips, config.precision)
    except FloatingPointError as error:
        # All processes come here together, and the tokenizer is still worth saving.
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
    rank, num_processes = 0, 1
    if dist.is_available() and dist.is_initialized():
        rank, num_processes = dist.get_rank(), dist.get_world_size()
    num_clips = min(len(clips), max_clips)
    seen, was_training = ChannelMoments(), tokenizer.training
    tokenizer.eval()
    try:
        for number in range(rank, num_clips, num_processes):
            # Evenly, as neighbours in a dataset are often alike.
            seen.update(_latents(tokenizer, clips[number * len(clips) // num_clips], precision))
    finally:
        tokenizer.train(was_training)
    moments = seen.gathered().compute()
    if not (moments.mean.isfinite().all() and moments.std.isfinite().all()):
        raise FloatingPointError(
            f"of {num_clips} clips some latents are not finite, so nothing was measured: try "
            "precision='fp32'"
        )
    constant = _constant(moments)
    if constant.any() and rank == 0:
        warnings.warn(
            f"latent channels {constant.nonzero()[:, 0].tolist()} never change: their standard "
            "deviation is stored as 1",
            stacklevel=3,
        )
    moments = moments._replace(std=moments.std.masked_fill(constant, 1.0))
    tokenizer.quantizer.store_statistics(moments.mean, moments.std, moments.num_values)
    return moments


def _check(tokenizer: VideoTokenizer, clips: Clips, max_clips: int) -> None:
    if not isinstance(tokenizer.quantizer, Continuous):
        raise ValueError(
            "this tokenizer is discrete: only latents of one with continuous_dim are measured"
        )
    if tokenizer.config.dim_cond is not None:
        raise ValueError(
            f"this tokenizer is conditional (dim_cond={tokenizer.config.dim_cond}) and clips hold "
            "no condition: gather metrics.ChannelMoments of your own latents and hand them to "
            "tokenizer.quantizer.store_statistics"
        )
    if not len(clips) or max_clips < 1:
        raise ValueError(f"{len(clips)} clips, of which at most {max_clips}: give one or more")
    check_range(clips[0])


def _constant(moments: Moments) -> Bool[Tensor, " c"]:
    """Channels that never change: what float32 cannot tell from the mean is no spread."""
    float32 = torch.finfo(torch.float32)
    return moments.std <= (moments.mean.abs() * float32.eps).clamp(min=float32.tiny)


def _latents(tokenizer: VideoTokenizer, clip: Tensor, precision: Precision) -> Latents:
    """What `decode` takes, of one clip or image."""
    device = next(tokenizer.parameters()).device
    video = clip[None].to(device)
    with autocast(device, precision):
        # Not `encode`: it would warn about bright clips, and the range is checked already.
        frames = pad_frames(tokenizer.prepare(video, check_range=False), tokenizer.time_factor)
        latents, _ = tokenizer.encode_chunk(frames, last=True)
        return tokenizer.quantize(latents).quantized

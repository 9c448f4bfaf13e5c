"""Frame, video and multi-scale discriminators, and their files."""

import json
from pathlib import Path

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from magvit2_pytorch.atomic import as_path, replacing
from magvit2_pytorch.config import check_at_least_one
from magvit2_pytorch.discriminators.discriminator import (
    DISCRIMINATORS,
    Discriminator,
    DiscriminatorOutput,
    Picks,
    Views,
    build_discriminator,
    pick_consecutive_frames,
    pick_frames,
)
from magvit2_pytorch.discriminators.network import (
    BlockOrder,
    BlurPool,
    HeadName,
    ResidualNetwork,
)
from magvit2_pytorch.functional import at_least_float32, autocast
from magvit2_pytorch.types import Video
from magvit2_pytorch.weights import default_file_mode, mismatches, read_tensors

DETAIL_GAIN = 4.0
"""Factor of details; pictures stayed softer with 8 (benchmarks/LOG.md, section 31)."""


@DISCRIMINATORS.register("frame")
class FrameDiscriminator(Discriminator):
    """Residual network on `num_frames` random frames of a clip, each classified separately.

    It ignores motion and costs a fraction of a video discriminator. Logits are `b t`, or
    `b t y x` with head "patch"; head "fixed" needs `input_size=(height, width)`. `blur_taps=1`
    turns anti-aliasing off. Default widths are a quarter of the 128 of O2-MAGVIT2. A gradient
    penalty is computed on the mean logit of the frames of a sample: R1 is 1 / `num_frames` of the
    mean R1 of single frames.

    With `detail_taps`, an odd number, it sees `DETAIL_GAIN` times what a binomial blur of so many
    taps takes from a frame: it judges texture, and leaves colour and shading to the reconstruction
    loss. With a decoder that was trained before, pictures then had a smaller perceptual distance,
    less flicker and fewer block edges at equal PSNR (benchmarks/LOG.md, section 31).
    """

    def __init__(
        self,
        channels: int = 3,
        dim: int = 32,
        dim_mults: tuple[int, ...] = (2, 4, 4, 4),
        num_frames: int = 1,
        head: HeadName = "pooled",
        input_size: tuple[int, int] | None = None,
        block_order: BlockOrder = "o2",
        blur_taps: int = 3,
        detail_taps: int | None = None,
    ):
        super().__init__()
        check_at_least_one(num_frames=num_frames)
        if detail_taps is not None and (detail_taps < 3 or detail_taps % 2 == 0):
            raise ValueError(f"detail_taps is {detail_taps}: use an odd number from 3, such as 9")
        options = dict(
            channels=channels, dim=dim, dim_mults=dim_mults, head=head, input_size=input_size,
            block_order=block_order, blur_taps=blur_taps,
        )  # fmt: skip
        self.options = dict(name="frame", num_frames=num_frames, detail_taps=detail_taps, **options)
        self.channels, self.num_frames = channels, num_frames
        self.blur = None if detail_taps is None else BlurPool(detail_taps, stride=1)
        self.network = ResidualNetwork(2, **options)

    def pick(self, video: Video, generator: torch.Generator | None = None) -> Picks:
        pick = pick_frames(video.shape[2], self.num_frames, video.shape[0], generator)
        return (pick.to(video.device),)

    def views(self, video: Video, picks: Picks) -> Views:
        (frames,) = super().views(video, picks)
        if self.blur is None:
            return (frames,)
        # In float32: half precision would round a frame to steps as large as its fine texture.
        with autocast(video.device, "fp32"):
            flat = rearrange(at_least_float32(frames), "b c t h w -> (b t) c h w")
            details = DETAIL_GAIN * (flat - self.blur(flat))
        return (rearrange(details, "(b t) c h w -> b c t h w", b=len(frames)),)

    def forward(self, views: Views) -> DiscriminatorOutput:
        self.check_views(views)
        num_frames = views[0].shape[2]
        frames = rearrange(views[0], "b c t h w -> (b t) c h w")
        logits, features = self.network(frames)
        return DiscriminatorOutput(
            (rearrange(logits, "(b t) ... -> b t ...", t=num_frames),),
            tuple(rearrange(x, "(b t) d y x -> b d t y x", t=num_frames) for x in features),
        )


@DISCRIMINATORS.register("video")
class VideoDiscriminator(Discriminator):
    """Residual network over time and space, for clips of any size.

    Its input is the whole clip, or `num_frames` consecutive frames `stride` apart from a random
    start. Logits are `b`, or `b j y x` with head "patch"; head "fixed" needs
    `input_size=(frames, height, width)`. `blur_taps=1` turns anti-aliasing off. Default widths are
    a quarter of the 128 of O2-MAGVIT2, with one downsampling less.
    """

    def __init__(
        self,
        channels: int = 3,
        dim: int = 32,
        dim_mults: tuple[int, ...] = (2, 4, 4, 4),
        num_frames: int | None = None,
        stride: int = 1,
        head: HeadName = "pooled",
        input_size: tuple[int, int, int] | None = None,
        block_order: BlockOrder = "o2",
        blur_taps: int = 3,
    ):
        super().__init__()
        check_at_least_one(stride=stride, num_frames=num_frames)
        options = dict(
            channels=channels, dim=dim, dim_mults=dim_mults, head=head, input_size=input_size,
            block_order=block_order, blur_taps=blur_taps,
        )  # fmt: skip
        self.options = dict(name="video", num_frames=num_frames, stride=stride, **options)
        self.channels, self.num_frames, self.stride = channels, num_frames, stride
        self.network = ResidualNetwork(3, **options)

    def pick(self, video: Video, generator: torch.Generator | None = None) -> Picks:
        batch, length = video.shape[0], video.shape[2]
        num_frames = length if self.num_frames is None else self.num_frames
        pick = pick_consecutive_frames(length, num_frames, self.stride, batch, generator)
        return (pick.to(video.device),)

    def forward(self, views: Views) -> DiscriminatorOutput:
        self.check_views(views)
        logits, features = self.network(views[0])
        return DiscriminatorOutput((logits,), features)


@DISCRIMINATORS.register("multiscale")
class MultiScaleDiscriminator(Discriminator):
    """One `VideoDiscriminator` for each of `scales`, pairs of (number of frames, stride).

    Each has its own random start: a large stride shows slow motion at the cost of few frames. By
    default they span 5, 9 and 17 frames, the last being the clip length of the paper. The output
    has one tensor of logits per scale.
    """

    def __init__(
        self,
        channels: int = 3,
        dim: int = 32,
        dim_mults: tuple[int, ...] = (2, 4, 4, 4),
        scales: tuple[tuple[int, int], ...] = ((5, 1), (5, 2), (5, 4)),
        head: HeadName = "pooled",
        block_order: BlockOrder = "o2",
        blur_taps: int = 3,
    ):
        super().__init__()
        if not scales:
            raise ValueError("scales is empty: give pairs of (number of frames, stride)")
        if head == "fixed":
            raise ValueError("head 'fixed' is for views of one size: use 'pooled' or 'patch'")
        options = dict(
            channels=channels, dim=dim, dim_mults=dim_mults, head=head, block_order=block_order,
            blur_taps=blur_taps,
        )  # fmt: skip
        self.options = dict(name="multiscale", scales=scales, **options)
        self.channels, self.num_views = channels, len(scales)
        self.discriminators = nn.ModuleList(
            VideoDiscriminator(num_frames=num_frames, stride=stride, **options)
            for num_frames, stride in scales
        )

    def pick(self, video: Video, generator: torch.Generator | None = None) -> Picks:
        return tuple(pick for d in self.discriminators for pick in d.pick(video, generator))

    def forward(self, views: Views) -> DiscriminatorOutput:
        self.check_views(views)
        outputs = [d((view,)) for d, view in zip(self.discriminators, views, strict=True)]
        return DiscriminatorOutput(
            tuple(logits for output in outputs for logits in output.logits),
            tuple(x for output in outputs for x in output.features),
        )


METADATA_KEY = "discriminator"
ACCEPTED = "a file that save_discriminator wrote"


def save_discriminator(discriminator: Discriminator, path: str | Path) -> None:
    """Writes weights and options, from which `load_discriminator` builds it again."""
    # Safetensors stores contiguous tensors only; channels-last is restored on loading.
    state = {name: value.contiguous() for name, value in discriminator.state_dict().items()}
    metadata = {"format": "pt", METADATA_KEY: json.dumps(discriminator.options)}
    with replacing(as_path(path)) as part, default_file_mode(part):
        save_file(state, part, metadata=metadata)


def load_discriminator(path: str | Path) -> Discriminator:
    """Loads a discriminator in eval mode on the CPU.

    Raises `FileNotFoundError`, or `ValueError` if `save_discriminator` did not write the file.
    """
    state = read_tensors(path, ACCEPTED)
    try:
        with safe_open(path, framework="pt") as file:
            options = json.loads((file.metadata() or {})[METADATA_KEY])
    except (KeyError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{path} has no options of a discriminator in its header: give {ACCEPTED}"
        ) from error
    discriminator = build_discriminator(**options)
    expected = {name: value.shape for name, value in discriminator.state_dict().items()}
    if mismatch := mismatches(state, expected):
        raise ValueError(f"{path} does not match its own options: it {mismatch}")
    discriminator.load_state_dict(state)
    return discriminator.eval()

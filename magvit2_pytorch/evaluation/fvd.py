"""Features of I3D for the Frechet video distance, from a TorchScript that the user has.

Two ways of getting them are in use, and their numbers are not to be compared with each other, nor
with those of another number of frames, frame rate or set of clips.
"""

import os
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.data.file_hash import sha256_of
from magvit2_pytorch.types import VALUE_RANGE, Video

Protocol = Literal["stylegan-v", "logits"]

SIDE = 224
"""Pixels to a side that I3D was trained with."""


class Way(NamedTuple):
    """How one protocol asks for features, and what it makes of them."""

    options: dict[str, bool]
    """Of the call, besides the clip."""
    unbiased: bool
    """Whether covariances are divided by n - 1, or by n."""


PROTOCOLS: dict[Protocol, Way] = {
    "stylegan-v": Way(dict(rescale=False, resize=False, return_features=True), unbiased=False),
    "logits": Way({}, unbiased=True),
}


class I3D:
    """Features of clips, one vector each, of a network in a TorchScript file.

    Clips are in [-1, 1], clamped, and every frame is squeezed to 224 x 224, bilinearly, whatever
    its proportions. Grey is repeated to RGB. Google's reference resizes bilinearly by TensorFlow 1,
    where a pixel's position is its upper left corner and not its centre as here: its frames are
    shifted by up to half a pixel of the larger size, and its distances differ a little.

    "stylegan-v": the file is one such as StyleGAN-V's i3d_torchscript.pt, called with
    rescale=False, resize=False and return_features=True, for 400 numbers before the softmax; the
    covariance is divided by n. StyleGAN-V itself hands over bytes and has the file scale and resize
    them, which is the same but for the rounding of reconstructions to bytes.

    "logits": the file is called with the clip alone and gives logits, averaged over frames (and
    rows and columns) where it gives them for each; the covariance is divided by n - 1, as in
    Google's reference.

    A TorchScript file is a program: it cannot do what Python can, but give only one that you trust.
    Raises `FileNotFoundError`, or `ValueError` on a file that is no TorchScript.
    """

    def __init__(self, path: str | os.PathLike, protocol: Protocol, device: str = "cpu"):
        if protocol not in PROTOCOLS:
            known = " or ".join(PROTOCOLS)
            raise ValueError(f"no FVD protocol is called {protocol!r}: use {known}")
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}: give I3D as TorchScript")
        self.path, self.protocol = str(path), protocol
        self.way = PROTOCOLS[protocol]
        self.file_hash = sha256_of(path)
        """SHA-256 of the file, in hexadecimal."""
        try:
            self.network = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{path} is no TorchScript file ({reason})") from error

    @torch.no_grad()
    def features(self, video: Video) -> Float[Tensor, "b k"]:
        """One vector a clip; `ValueError` where the network does not take it or gives none."""
        channels, num_frames = video.shape[1:3]
        if channels not in (1, 3):
            raise ValueError(f"{channels} channels: I3D sees 1 (grey) or 3 (RGB)")
        frames = rearrange(video.float().clamp(*VALUE_RANGE), "b c t h w -> (b t) c h w")
        frames = F.interpolate(frames, (SIDE, SIDE), mode="bilinear", align_corners=False)
        frames = repeat(frames, "n c h w -> n (r c) h w", r=3 // channels)
        clip = rearrange(frames, "(b t) c h w -> b c t h w", t=num_frames).contiguous()
        try:
            found = self.network(clip, **self.way.options)
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, torch.jit.Error) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"{self.path} does not take {num_frames} frames by the protocol "
                f"{self.protocol} ({reason}): I3D needs 10 frames or more, and a file may be "
                "meant for the other protocol"
            ) from error
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(video):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{self.path} gave {what}, and not one vector of features a clip")
        return reduce(found.float(), "b k ... -> b k", "mean")

    def check(self, num_frames: int, channels: int) -> int:
        """The length of the vectors; raises as `features` does on what clips will look like."""
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        return self.features(torch.zeros(1, channels, num_frames, 32, 32, device=device)).shape[1]

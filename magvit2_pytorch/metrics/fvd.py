"""I3D features for the Fréchet video distance, from the user's TorchScript file.

Two protocols are in use. Their distances cannot be compared with each other, nor with those of
another number of frames, frame rate or set of clips.
"""

import os
from typing import Literal, NamedTuple

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from magvit2_pytorch.atomic import as_path, sha256_of
from magvit2_pytorch.types import VALUE_RANGE, Video

Protocol = Literal["stylegan-v", "logits"]

SIDE = 224
"""Pixels to a side of the frames that I3D was trained with."""


class ProtocolSettings(NamedTuple):
    """Arguments of the network and definition of the covariance in a protocol."""

    options: dict[str, bool]
    """Keyword arguments of the network."""
    unbiased: bool
    """Divide covariances by n - 1, not by n."""


PROTOCOLS: dict[Protocol, ProtocolSettings] = {
    "stylegan-v": ProtocolSettings(
        dict(rescale=False, resize=False, return_features=True), unbiased=False
    ),
    "logits": ProtocolSettings({}, unbiased=True),
}


class I3D:
    """Feature vectors of clips, computed by a network in a TorchScript file.

    Clips are clamped to [-1, 1], and every frame is resized to 224 x 224 bilinearly, whatever its
    aspect ratio. Grey is repeated to RGB. Google's reference resizes with TensorFlow 1, which
    shifts frames by up to half a pixel of the larger size: its distances differ a little.

    "stylegan-v": a file such as StyleGAN-V's i3d_torchscript.pt, called with rescale=False,
    resize=False and return_features=True, for 400 features before the softmax; the covariance is
    divided by n. StyleGAN-V itself rounds reconstructions to bytes.

    "logits": the file is called with the clip only and returns logits, which are averaged over
    frames, rows and columns if it returns them for each; the covariance is divided by n - 1, as in
    Google's reference.

    A TorchScript file is a program: use only one that you trust. Raises `FileNotFoundError`, or
    `ValueError` if the file is not TorchScript.
    """

    def __init__(self, path: str | os.PathLike, protocol: Protocol, device: str = "cpu"):
        if protocol not in PROTOCOLS:
            known = " or ".join(PROTOCOLS)
            raise ValueError(f"unknown FVD protocol {protocol!r}: use {known}")
        if not as_path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}: give I3D as TorchScript")
        self.path, self.protocol = str(path), protocol
        self.settings = PROTOCOLS[protocol]
        self.file_hash = sha256_of(path)
        """SHA-256 of the file, in hexadecimal."""
        try:
            self.network = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{path} is not a TorchScript file ({reason})") from error

    @torch.no_grad()
    def features(self, video: Video) -> Float[Tensor, "b k"]:
        """One vector per clip; `ValueError` if the network rejects the clips."""
        channels, num_frames = video.shape[1:3]
        if channels not in (1, 3):
            raise ValueError(f"{channels} channels: I3D takes 1 (grey) or 3 (RGB)")
        frames = rearrange(video.float().clamp(*VALUE_RANGE), "b c t h w -> (b t) c h w")
        frames = F.interpolate(frames, (SIDE, SIDE), mode="bilinear", align_corners=False)
        frames = repeat(frames, "n c h w -> n (r c) h w", r=3 // channels)
        clip = rearrange(frames, "(b t) c h w -> b c t h w", t=num_frames).contiguous()
        try:
            output = self.network(clip, **self.settings.options)
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, torch.jit.Error) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"{self.path} does not accept {num_frames} frames with the protocol "
                f"{self.protocol} ({reason}): I3D needs at least 10 frames, or the file may be "
                "meant for the other protocol"
            ) from error
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(video):
            kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"{self.path} returned {kind}, not one feature vector per clip")
        return reduce(output.float(), "b k ... -> b k", "mean")

    def check(self, num_frames: int, channels: int) -> int:
        """Length of the vectors; raises as `features` on such clips."""
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        return self.features(torch.zeros(1, channels, num_frames, 32, 32, device=device)).shape[1]

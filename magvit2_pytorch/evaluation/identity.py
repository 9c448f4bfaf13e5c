"""Which tokenizer it was: a name for people, a fingerprint for certainty."""

import hashlib
import json
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import nn

from magvit2_pytorch.tokenizer.config import TokenizerConfig
from magvit2_pytorch.tokenizer.model import VideoTokenizer


class Identity(NamedTuple):
    """A tokenizer's name, as it was given, and its fingerprint."""

    name: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.name} (fingerprint {self.fingerprint[:12]})"


def identify(tokenizer: VideoTokenizer, name: str = "a tokenizer without a name") -> Identity:
    """The identity under which codes are stored and checked; reads all weights once."""
    return Identity(name, fingerprint(tokenizer))


def fingerprint(tokenizer: VideoTokenizer) -> str:
    """SHA-256 over configuration and weights, in hexadecimal.

    Equal for a tokenizer in memory and the same one saved and loaded, on any device.
    """
    return weights_hash(tokenizer, json.dumps(_own_options(tokenizer.config), sort_keys=True))


def weights_hash(module: nn.Module, about: str = "") -> str:
    """SHA-256 over a text and all tensors of a module, in hexadecimal."""
    digest = hashlib.sha256(about.encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        value = value.detach().cpu().contiguous().reshape(-1)
        digest.update(value.view(torch.uint8).numpy())
    return digest.hexdigest()


def _own_options(config: TokenizerConfig) -> dict[str, object]:
    """Options that are not the defaults: new ones of later versions change no fingerprint."""
    defaults = {field.name: field.default for field in fields(config)}
    values = config.to_dict()
    return {n: values[n] for n in values if getattr(config, n) != defaults[n]}

"""Tokenizer names and fingerprints."""

import hashlib
import json
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import nn

from magvit2_pytorch.tokenizer.config import TokenizerConfig
from magvit2_pytorch.tokenizer.model import VideoTokenizer


class TokenizerId(NamedTuple):
    """A tokenizer's name, as the user gave it, and its fingerprint."""

    name: str
    fingerprint: str

    @classmethod
    def of(
        cls, tokenizer: VideoTokenizer, name: str = "a tokenizer without a name"
    ) -> "TokenizerId":
        """The ID to store with codes; hashes all weights."""
        return cls(name, fingerprint(tokenizer))

    def __str__(self) -> str:
        return f"{self.name} (fingerprint {self.fingerprint[:12]})"


def fingerprint(tokenizer: VideoTokenizer) -> str:
    """SHA-256 of configuration and weights, in hexadecimal.

    Saving and loading a tokenizer, or moving it to another device, does not change it.
    """
    options = json.dumps(_non_default_options(tokenizer.config), sort_keys=True)
    return weights_hash(tokenizer, options)


def weights_hash(module: nn.Module, prefix: str = "") -> str:
    """SHA-256 of `prefix` and all tensors of a module, in hexadecimal."""
    digest = hashlib.sha256(prefix.encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        value = value.detach().cpu().contiguous().reshape(-1)
        digest.update(value.view(torch.uint8).numpy())
    return digest.hexdigest()


def _non_default_options(config: TokenizerConfig) -> dict[str, object]:
    """Options that differ from the defaults: new options keep old fingerprints."""
    defaults = {field.name: field.default for field in fields(config)}
    values = config.to_dict()
    return {n: values[n] for n in values if getattr(config, n) != defaults[n]}

"""Fingerprint of a tokenizer, and the check that codes belong to it."""

import hashlib
import json
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import nn

from magvit2_pytorch.codes.code_header import CodedVideo
from magvit2_pytorch.tokenizer_1d import AnyTokenizer, Tokenizer1d


class TokenizerId(NamedTuple):
    """A tokenizer's name, as the user gave it, and its fingerprint."""

    name: str
    fingerprint: str

    @classmethod
    def of(cls, tokenizer: AnyTokenizer, name: str = "a tokenizer without a name") -> "TokenizerId":
        """The ID to store with codes; hashes all weights."""
        return cls(name, fingerprint(tokenizer))

    def __str__(self) -> str:
        return f"{self.name} (fingerprint {self.fingerprint[:12]})"


def fingerprint(tokenizer: AnyTokenizer) -> str:
    """SHA-256 of configuration and weights, in hexadecimal.

    Saving and loading a tokenizer, or moving it to another device, does not change it.
    """
    config, values = tokenizer.config, tokenizer.config.to_dict()
    # Options that differ from the defaults: new options keep old fingerprints.
    changed = {
        f.name: values[f.name] for f in fields(config) if getattr(config, f.name) != f.default
    }
    return weights_hash(tokenizer, json.dumps(changed, sort_keys=True))


def weights_hash(module: nn.Module, prefix: str = "") -> str:
    """SHA-256 of `prefix` and all tensors of a module, in hexadecimal."""
    digest = hashlib.sha256(prefix.encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        value = value.detach().cpu().contiguous().reshape(-1)
        digest.update(value.view(torch.uint8).numpy())
    return digest.hexdigest()


def decodes(tokenizer: AnyTokenizer, tokenizer_id: TokenizerId, fingerprint: str) -> bool:
    """True if it decodes codes of the tokenizer with this fingerprint."""
    codes_of = None if isinstance(tokenizer, Tokenizer1d) else tokenizer.config.codes_of
    return fingerprint in (tokenizer_id.fingerprint, codes_of)


class TokenizerMismatch(ValueError):
    """Codes were made by another tokenizer."""


def check_supports_files(tokenizer: AnyTokenizer, needs_codes: bool) -> None:
    """Raises `ValueError` on conditional tokenizers, and on continuous ones if `needs_codes`."""
    if isinstance(tokenizer, Tokenizer1d):
        return
    if tokenizer.config.dim_cond is not None:
        raise ValueError(
            f"this tokenizer is conditional (dim_cond={tokenizer.config.dim_cond}), but a file "
            "has no condition: use tokenize(video, cond) in Python"
        )
    if needs_codes and tokenizer.codebook_size is None:
        raise ValueError(
            "this tokenizer is continuous (continuous_dim="
            f"{tokenizer.config.continuous_dim}) and has no codes to store: use reconstruct, or "
            "encode and decode in Python"
        )


def check_same_tokenizer(
    tokenizer: AnyTokenizer, tokenizer_id: TokenizerId, video: CodedVideo, force: bool = False
) -> None:
    """Raises `TokenizerMismatch` unless this tokenizer decodes the codes.

    `force` allows another fingerprint, if codebook and strides are the same.
    """
    header = video.header
    if decodes(tokenizer, tokenizer_id, header.fingerprint):
        return
    names = ("codebook_size", "num_codebooks", "time_factor", "space_factor")
    pairs = [(name, getattr(header, name), getattr(tokenizer, name)) for name in names]
    differ = [f"{name} {theirs}, not {ours}" for name, theirs, ours in pairs if theirs != ours]
    if force and not differ:
        return
    author = TokenizerId(header.tokenizer, header.fingerprint)
    advice = f"; --force cannot help ({'; '.join(differ)})" if differ else ", or use --force"
    raise TokenizerMismatch(
        f"the codes of {video.source} were made by {author}, not by {tokenizer_id}: "
        f"decode them with the former{advice}"
    )

"""Checks that a tokenizer works with files and given codes."""

from magvit2_pytorch.data import CodeHeader
from magvit2_pytorch.evaluation.identity import TokenizerId
from magvit2_pytorch.tokenizer.model import VideoTokenizer


class TokenizerMismatch(ValueError):
    """Codes were made by another tokenizer."""


def check_supports_files(tokenizer: VideoTokenizer, needs_codes: bool) -> None:
    """Raises `ValueError` on conditional tokenizers, and on continuous ones if `needs_codes`."""
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
    tokenizer: VideoTokenizer, tokenizer_id: TokenizerId, header: CodeHeader, force: bool = False
) -> None:
    """Raises `TokenizerMismatch` unless the codes were made by this tokenizer.

    `force` allows another fingerprint, if codebook and strides are the same.
    """
    names = ("codebook_size", "num_codebooks", "time_factor", "space_factor")
    pairs = [(name, getattr(header, name), getattr(tokenizer, name)) for name in names]
    differ = [f"{name} {theirs}, not {ours}" for name, theirs, ours in pairs if theirs != ours]
    if tokenizer_id.fingerprint == header.fingerprint or (force and not differ):
        return
    author = TokenizerId(header.tokenizer, header.fingerprint)
    advice = f"; --force cannot help ({'; '.join(differ)})" if differ else ", or use --force"
    raise TokenizerMismatch(
        f"the codes of {header.source} were made by {author}, not by {tokenizer_id}: "
        f"decode them with the former{advice}"
    )

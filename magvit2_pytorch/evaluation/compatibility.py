"""Which tokenizers can work on files, and which codes a tokenizer understands."""

from magvit2_pytorch.data import CodeHeader
from magvit2_pytorch.evaluation.identity import TokenizerId
from magvit2_pytorch.tokenizer.model import VideoTokenizer


class TokenizerMismatch(ValueError):
    """Codes of one tokenizer were given to another."""


def check_supports_files(tokenizer: VideoTokenizer, needs_codes: bool) -> None:
    """Raises `ValueError` on tokenizers that need more than a file, or have no codes to store."""
    if tokenizer.config.dim_cond is not None:
        raise ValueError(
            f"this tokenizer is conditional (dim_cond={tokenizer.config.dim_cond}) and a file "
            "holds no condition: use tokenize(video, cond) in Python"
        )
    if needs_codes and tokenizer.codebook_size is None:
        raise ValueError(
            "this tokenizer is continuous (continuous_dim="
            f"{tokenizer.config.continuous_dim}) and has no codes to store: reconstruct with it, "
            "or use encode and decode in Python"
        )


def check_same_tokenizer(
    tokenizer: VideoTokenizer, tokenizer_id: TokenizerId, header: CodeHeader, force: bool = False
) -> None:
    """Raises `TokenizerMismatch` unless these codes are the tokenizer's own.

    `force` lets another fingerprint pass, if at least codebook and strides are the same.
    """
    ours = {n: getattr(tokenizer, n) for n in
            ("codebook_size", "num_codebooks", "time_factor", "space_factor")}  # fmt: skip
    differ = [f"{n} {getattr(header, n)}, not {value}" for n, value in ours.items()
              if getattr(header, n) != value]  # fmt: skip
    if tokenizer_id.fingerprint == header.fingerprint or (force and not differ):
        return
    author = TokenizerId(header.tokenizer, header.fingerprint)
    advice = f"no force can help ({'; '.join(differ)})" if differ else "or use force"
    raise TokenizerMismatch(
        f"the codes of {header.source} were made by {author}, not by {tokenizer_id}: "
        f"decode them with the former, {advice}"
    )

"""`magvit2 info`: describes a file or folder."""

from collections.abc import Iterator
from typing import Any

from magvit2_pytorch.atomic import as_path
from magvit2_pytorch.cli.model_folder import (
    HUB,
    UsageError,
    UserError,
    find_tokenizer,
    load_tokenizer,
    user_errors,
)


def info(path: str | None = None, /, *, preset: str | None = None, json: bool = False) -> int:
    """Describes a tokenizer, a code file, a checkpoint, a video or an image.

    For a tokenizer: parameters, compression, codebook, bits per pixel or latent statistics, layers
    and configuration. For a code file: its header. For a checkpoint: the state of training.

    Args:
        path: Folder of a tokenizer, run or checkpoint, hf://OWNER/NAME, or a file.
        preset: Describe the tokenizer of this preset instead.
        json: Print JSON.
    """
    if (path is None) == (preset is None):
        raise UsageError("info needs a PATH or --preset NAME")
    description = _describe_preset(preset) if path is None else _describe_path(path)
    if json:
        from json import dumps

        print(dumps(description, indent=2))
    else:
        print("\n".join(format_lines(description)))
    return 0


def format_lines(description: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Lines of names and values; a list of rows becomes a table."""
    width = max(map(len, description), default=0)
    for name, value in description.items():
        if isinstance(value, dict):
            yield f"{indent}{name}"
            yield from format_lines(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from (indent + line for line in format_table(value))
        else:
            yield f"{indent}{name:{width}}  {_text(value)}"


def format_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A header line and a line for each row; numbers are right-aligned."""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left_aligned = [isinstance(value, str) for value in rows[0].values()]
    for line in cells:
        padded = (
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, left_aligned, strict=True)
        )
        yield "  ".join(padded).rstrip()


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _describe_preset(name: str) -> dict[str, Any]:
    from magvit2_pytorch.pipelines.tokenizer_info import describe_preset
    from magvit2_pytorch.tokenizer.presets import PRESETS
    from magvit2_pytorch.tokenizer_1d import PRESETS_1D

    with user_errors(to=UsageError):
        options = (PRESETS_1D if name in PRESETS_1D else PRESETS).model(name)
    return describe_preset(options)


def _describe_path(path: str) -> dict[str, Any]:
    location = as_path(path)
    if not path.startswith(HUB) and not location.exists():
        raise UserError(f"there is no {path}")
    from magvit2_pytorch.media.unusable import UnusableMedia
    from magvit2_pytorch.pipelines.tokenizer_info import (
        describe_checkpoint,
        describe_file,
        is_checkpoint,
        tokenizer_info,
    )

    with user_errors(UnusableMedia):
        if location.is_file():
            return describe_file(location)
        if is_checkpoint(location):
            return describe_checkpoint(location)
    find_tokenizer(path)
    return tokenizer_info(load_tokenizer(path, "cpu")[0])

"""`magvit2 info`: what a file or folder is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from magvit2_pytorch.cli.errors import UsageError, UserError, user_errors
from magvit2_pytorch.cli.model_folder import HUB, find_tokenizer, load_tokenizer


def info(path: str | None = None, /, *, preset: str | None = None, json: bool = False) -> int:
    """Describes a tokenizer, a code file, a checkpoint, a video or an image.

    Of a tokenizer: parameters, compression, codebook, bits per pixel or what was measured of its
    latents, its layers one by one and its configuration. Of a code file: its header. Of a
    checkpoint: how far training had come.

    Args:
        path: Folder of a tokenizer, run or checkpoint, hf://OWNER/NAME, or a file.
        preset: Describe the tokenizer of this preset instead.
        json: Print JSON.
    """
    if (path is None) == (preset is None):
        raise UsageError("info needs a PATH or --preset NAME")
    about = _preset(preset) if path is None else _path(path)
    if json:
        from json import dumps

        print(dumps(about, indent=2))
    else:
        print("\n".join(lines(about)))
    return 0


def lines(about: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Names and values, one a line; a list of rows as a table."""
    width = max(map(len, about), default=0)
    for name, value in about.items():
        if isinstance(value, dict):
            yield f"{indent}{name}"
            yield from lines(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from (indent + line for line in table(value))
        else:
            yield f"{indent}{name:{width}}  {_text(value)}"


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line of names, and one for each row; numbers to the right."""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    to_the_left = [isinstance(value, str) for value in rows[0].values()]
    for line in cells:
        padded = (
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, to_the_left, strict=True)
        )
        yield "  ".join(padded).rstrip()


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _preset(name: str) -> dict[str, Any]:
    from magvit2_pytorch.evaluation.describe import describe_preset
    from magvit2_pytorch.tokenizer.presets import preset

    with user_errors(to=UsageError):
        options = preset(name)
    return describe_preset(options)


def _path(path: str) -> dict[str, Any]:
    place = Path(path).expanduser()
    if not path.startswith(HUB) and not place.exists():
        raise UserError(f"there is no {path}")
    from magvit2_pytorch.data import UnusableMedia
    from magvit2_pytorch.evaluation.describe import (
        describe_checkpoint,
        describe_file,
        is_checkpoint,
        tokenizer_info,
    )

    with user_errors(UnusableMedia):
        if place.is_file():
            return describe_file(place)
        if is_checkpoint(place):
            return describe_checkpoint(place)
    find_tokenizer(path)
    return tokenizer_info(load_tokenizer(path, "cpu")[0])

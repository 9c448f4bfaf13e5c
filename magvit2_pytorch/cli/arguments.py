"""Command-line arguments from function signatures and docstrings.

Parameters before the `/` are positional on the command line too (a list takes one or more
words); those after `*` are options, required if they have no default. A boolean option that is
False by default takes no value. The help text comes from the docstring's `Args`, or, for options
that several commands have, from `SHARED_HELP`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from inspect import Parameter, signature
from typing import Any, get_origin

from docstring_parser import parse, parse_from_object
from jsonargparse import ArgumentParser

OTHER_NAMES = {"output": "-o", "dry_run": "--dry-run"}
"""Second names of options."""

SHARED_HELP = {
    "model": "Folder of the tokenizer or of the run that trained it, or hf://OWNER/NAME.",
    "size": "Resize the short side to this many pixels; by default the file's own size.",
    "chunk_frames": "Frames to compute at a time: fewer need less memory, more may be faster.",
    "tile_size": (
        "Compute frames in tiles of this many pixels to a side, or `auto` for the largest tiles "
        "that fit into memory. For frames that do not fit; results are equal up to rounding."
    ),
    "device": "Device to compute on; auto uses a GPU if there is one.",
    "precision": (
        "Precision of the tokenizer's convolutions. bf16 is faster on hardware that supports it; "
        "about one code in 50 changes, and the codes decode as well."
    ),
}
"""Help of options that several commands have, for docstrings that do not describe them."""


def add_function(
    parser: ArgumentParser, function: Callable[..., int], skip: Iterable[str] = ()
) -> None:
    """Adds an argument for each parameter of `function`."""
    params = parse(function.__doc__).params
    help_of = SHARED_HELP | {param.arg_name: param.description for param in params}
    for name, parameter in signature(function).parameters.items():
        if name not in skip:
            _add_parameter(parser, parameter, help_of[name])


def call_function(function: Callable[..., int], values: Mapping[str, Any]) -> int:
    """Calls a function with parsed values of its arguments."""
    parameters = signature(function).parameters
    positional = [n for n, p in parameters.items() if p.kind is Parameter.POSITIONAL_ONLY]
    keywords = {name: values[name] for name in parameters if name not in positional}
    return function(*(values[name] for name in positional), **keywords)


def add_fields(
    parser: Any,
    config: type,
    defaults: Mapping[str, Any],
    section: str,
    prefix: str = "",
    skip: Iterable[str] = (),
) -> None:
    """Adds an option for each dataclass field, with defaults from `defaults`.

    The option is --`prefix``name` and stands under `section` in files.
    """
    help_of = {param.arg_name: param.description for param in parse_from_object(config).params}
    for field in fields(config):
        if field.name not in skip:
            parser.add_argument(
                f"--{prefix}{field.name}",
                dest=f"{section}.{field.name}",
                type=field.type,
                default=defaults.get(field.name, field.default),
                help=_one_line(help_of.get(field.name) or field.name.replace("_", " ")),
            )


def summary(function: Callable[..., int]) -> str:
    """The first line of the docstring."""
    return parse(function.__doc__).short_description


def description(function: Callable[..., int]) -> str:
    """The docstring up to its `Args`, with its line breaks."""
    parsed = parse(function.__doc__)
    return "\n\n".join(filter(None, (parsed.short_description, parsed.long_description)))


def _add_parameter(parser: ArgumentParser, parameter: Parameter, text: str) -> None:
    name, kind, default = parameter.name, parameter.annotation, parameter.default
    required = default is Parameter.empty
    text = _one_line(text)
    if parameter.kind is Parameter.POSITIONAL_ONLY:
        if get_origin(kind) is list:
            metavar = name.removesuffix("s").upper()
            parser.add_argument(name, nargs="+", type=str, metavar=metavar, help=text)
        else:
            options = {} if required else dict(nargs="?", default=default)
            parser.add_argument(name, type=kind, metavar=name.upper(), help=text, **options)
        return
    flags = [f for f in (OTHER_NAMES.get(name), f"--{name}") if f]
    if kind is bool and default is False:
        parser.add_argument(*flags, action="store_true", help=text)
    elif required:
        parser.add_argument(*flags, type=kind, required=True, help=text)
    else:
        parser.add_argument(*flags, type=kind, default=default, help=text)


def _one_line(text: str) -> str:
    # argparse formats help texts with %.
    return " ".join(text.split()).replace("%", "%%")

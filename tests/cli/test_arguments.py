"""Arguments of commands, read from signatures, dataclasses and docstrings."""

from dataclasses import dataclass, is_dataclass
from inspect import signature
from typing import Annotated

import pytest
from docstring_parser import parse, parse_from_object

from magvit2_pytorch.cli import main as cli
from magvit2_pytorch.cli import options
from magvit2_pytorch.cli.arguments import add_function, call_function
from magvit2_pytorch.cli.main import COMMANDS
from magvit2_pytorch.cli.options import UsageError


@dataclass(frozen=True, kw_only=True)
class Base:
    """Options that others extend."""

    share: float = 0.5
    """About 5 % of
    the files."""


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    """Options that travel together."""

    whole: bool = False
    """All files, whatever `share` says; `auto` is no option."""

    def __post_init__(self):
        if self.share > 1:
            raise ValueError("share is above 1")


def command(
    inputs: Annotated[list[str], "The files."], /, *, output: str = "x", some: Options
) -> int:
    """Does something.

    Args:
        output: The 100% result.
    """
    assert (inputs, output) == (["a", "b"], "y")
    assert some == Options(share=0.25, whole=True)
    return 3


def parser_of(function):
    parser = cli._parser("test", "")
    add_function(parser, function)
    return parser


def test_a_dataclass_stands_for_its_fields():
    parser = parser_of(command)
    values = parser.parse_args(["a", "b", "-o", "y", "--share", "0.25", "--whole"])
    assert call_function(command, vars(values)) == 3
    with pytest.raises(UsageError, match="share is above 1"):
        call_function(command, vars(parser.parse_args(["a", "--share", "2"])))


def test_help_comes_from_docstrings_fields_and_types():
    text = " ".join(parser_of(command).format_help().split())
    for help_text in (
        "The files. (required",
        "The 100% result. (type: str",
        "About 5 % of the files. (type: float",
        "All files, whatever --share says; `auto` is no option. (default: False)",
    ):
        assert help_text in text
    assert "%%" not in text


def test_no_help_text_stands_twice():
    # The fields and types of each command, each once, however many commands share them.
    for command in ("generate", "film"):  # whose options are imported when they are called
        cli.build_parser([command])
    dataclasses = {
        base
        for function in COMMANDS.values()
        for parameter in signature(function).parameters.values()
        if is_dataclass(parameter.annotation)
        for base in parameter.annotation.__mro__[:-1]
    }
    assert len(dataclasses) == 17
    fields = [param for cls in dataclasses for param in parse_from_object(cls).params]
    params = [param for function in COMMANDS.values() for param in parse(function.__doc__).params]
    types = [x.__metadata__[0] for x in vars(options).values() if hasattr(x, "__metadata__")]
    assert len(types) == 8
    # The library's own `ClipChoice` says what a size is, as the type does for other commands.
    texts = [param.description for param in fields + params if param.arg_name != "size"] + types
    assert len({" ".join(text.split()) for text in texts}) == len(texts) > 40

import inspect
from dataclasses import dataclass

import pytest

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.config import check_known, keyword_signature
from magvit2_pytorch.tokenizer.tokenizer_config import TokenizerConfig


def test_what_is_like_nothing_lists_everything():
    with pytest.raises(ValueError, match="'x': use one of litres, watts"):
        check_known("the kettle", ["x"], ["litres", "watts"])


def test_a_constructor_shows_the_fields_of_its_dataclass():
    @dataclass
    class Kettle:
        litres: float = 1.5
        watts: int = 2000

    class Stove:
        def __init__(self, size, *, lid=True, **options):
            self.kettle = Kettle(**options)

    signature = keyword_signature(Stove.__init__, Kettle)
    assert list(signature.parameters) == ["size", "lid", "litres", "watts"]
    kinds = [p.kind for p in signature.parameters.values()]
    assert kinds == [inspect.Parameter.POSITIONAL_OR_KEYWORD] + [inspect.Parameter.KEYWORD_ONLY] * 3
    assert signature.parameters["litres"].default == 1.5
    assert signature.parameters["watts"].annotation is int
    assert signature.parameters["lid"].default is True


def test_the_tokenizer_shows_its_options():
    parameters = inspect.signature(VideoTokenizer).parameters
    for name, field in TokenizerConfig.__dataclass_fields__.items():
        assert parameters[name].default == field.default
        assert parameters[name].kind == inspect.Parameter.KEYWORD_ONLY

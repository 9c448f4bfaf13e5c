"""The tokenizer has the interface that the rest of the library is written against."""

from inspect import Parameter, getattr_static, signature

import pytest

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.tokenizer.protocol import Tokenizer
from tests.conftest import DISCRETE, build, random_video

MEMBERS = [name for name in vars(Tokenizer) if not name.startswith("_")]


def test_it_has_every_member():
    assert "code_shape" in MEMBERS
    assert isinstance(build("compress_space"), Tokenizer)
    assert not isinstance(build("compress_space").encoder, Tokenizer)


@pytest.mark.parametrize("name", MEMBERS)
def test_its_methods_take_what_the_protocol_says(name):
    if isinstance(getattr_static(Tokenizer, name), property):
        return
    theirs, ours = (signature(getattr(cls, name)) for cls in (Tokenizer, VideoTokenizer))
    names = list(theirs.parameters)
    assert list(ours.parameters)[: len(names)] == names
    for parameter in list(ours.parameters.values())[len(names) :]:
        optional = (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
        assert parameter.default is not Parameter.empty or parameter.kind in optional


@pytest.mark.parametrize("quantizer", DISCRETE)
@pytest.mark.parametrize("num_frames", [1, 6, 7])
def test_codes_have_the_shape_it_says(quantizer, num_frames):
    tokenizer = build("compress_space", "compress_time", quantizer=quantizer)
    video = random_video(num_frames, (16, 24), batch=2)
    assert tokenizer.tokenize(video).shape == (2, *tokenizer.code_shape(num_frames, 16, 24))

"""The fingerprint is the tokenizer's, not the file's, the device's or the moment's."""

import copy

import torch

from magvit2_pytorch import VideoTokenizer
from magvit2_pytorch.pipelines.fingerprint import TokenizerId, fingerprint
from tests.conftest import build


def test_the_same_tokenizer_has_the_same_fingerprint(tmp_path):
    tokenizer = build("residual", "compress_space")
    ours = fingerprint(tokenizer)
    assert len(ours) == 64
    assert fingerprint(copy.deepcopy(tokenizer).train()) == ours
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint(VideoTokenizer.from_pretrained(tmp_path)) == ours
    assert fingerprint(tokenizer) == ours


def test_any_weight_and_any_option_changes_it():
    tokenizer = build("residual", "compress_space")
    seen = {fingerprint(tokenizer)}
    for parameter in tokenizer.parameters():
        with torch.no_grad():
            parameter[(-1,) * parameter.ndim] += 1e-3
        seen.add(fingerprint(tokenizer))
    assert len(seen) == 1 + len(list(tokenizer.parameters()))
    torch.manual_seed(0)
    one = build("residual", lfq_spherical=True)
    torch.manual_seed(0)
    other = build("residual")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert fingerprint(one) != fingerprint(other)


def test_an_option_said_to_be_its_default_changes_nothing():
    torch.manual_seed(0)
    silent = build("residual")
    torch.manual_seed(0)
    assert fingerprint(build("residual", lfq_spherical=False)) == fingerprint(silent)


def test_people_read_a_name():
    text = str(TokenizerId.of(build("residual"), "runs/one"))
    assert text.startswith("runs/one (fingerprint ")
    assert len(text) < 60

"""export: programs in a folder, and what stands in the way."""

import json
import re

import pytest
import torch

from magvit2_pytorch.pipelines import export_programs
from magvit2_pytorch.pipelines.export_programs import FORMATS
from tests.conftest import build


@pytest.mark.parametrize(
    ("options", "files", "said"),
    [
        ([], ["encode.onnx", "decode.onnx"], [r"\d+ of \d+ codes equal", r"max error \S+"]),
        (
            ["--format", "both", "--part", "decode"],
            ["decode.onnx", "decode.pt2"],
            [r"max error \S+"] * 2,
        ),
    ],
)
def test_programs_are_written_and_their_agreement_said(
    run, tmp_path, without_tracing, options, files, said
):
    build("compress_time").save_pretrained(tmp_path / "tokenizer")
    folder = tmp_path / "new"
    status, out, err = run("export", tmp_path / "tokenizer", "-o", folder, *options)
    assert (status, err) == (0, "")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*files, "export.json"])
    lines = zip(out.splitlines(), [*files, "Wrote"], [*said, f"{folder}/"], strict=True)
    for line, first, rest in lines:
        assert re.fullmatch(rf"{re.escape(first)} +{rest}", line), line
    about = json.loads((folder / "export.json").read_text())
    assert about["tokenizer"] == str(tmp_path / "tokenizer")


def test_a_program_that_differs_is_an_error_and_no_file(
    run, tmp_path, model, monkeypatch, without_tracing
):
    monkeypatch.setattr(FORMATS["pt2"], "load", lambda path: lambda codes: torch.zeros(1))
    status, out, err = run(
        "export", model, "-o", tmp_path / "new", "--format", "pt2", "--part", "decode"
    )
    assert (status, out) == (1, "")
    assert err.startswith("magvit2: error: decode.pt2 is wrong: ")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{model}", "-o", "{model}/config.json"], "is a file: name a folder"),
        (["{folder}/nothing", "-o", "{folder}/new"], "there is no"),
        (["{folder}", "-o", "{folder}/new"], "holds no tokenizer"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, model, words, said):
    words = [word.format(model=model, folder=tmp_path) for word in words]
    status, out, err = run("export", *words)
    assert (status, out) == (1, "")
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_one_line(run, tmp_path, model, monkeypatch):
    monkeypatch.setattr(export_programs, "OLDEST_TORCH", "99.0")
    status, _, err = run("export", model, "-o", tmp_path / "new")
    assert status == 1
    assert "needs torch 99.0 or newer" in err
    assert list(tmp_path.iterdir()) == []

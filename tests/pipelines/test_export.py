"""Exported programs do what the tokenizer does, at every size, in runtimes of their own."""

import json
import sys

import jaxtyping
import pytest
import torch

from magvit2_pytorch.functional import _scan_dynamic_length, linear_scan
from magvit2_pytorch.pipelines import export_programs, exporting
from magvit2_pytorch.pipelines.export_programs import FORMATS, OLDEST_TORCH, make_part
from magvit2_pytorch.pipelines.exporting import (
    EXPORT_FILE,
    ProgramMismatch,
    compare,
    export_tokenizer,
)
from magvit2_pytorch.pipelines.fingerprint import fingerprint
from magvit2_pytorch.tokenizer.layer_spec import LAYERS
from magvit2_pytorch.tokenizer.presets import PRESETS
from tests.conftest import QUANTIZERS, build, narrow


def exports(test):
    """A test that traces: sizes are no ints then, so that no types are checked."""
    too_old = torch.__version__ < OLDEST_TORCH
    reason = f"programs of any size need torch {OLDEST_TORCH}"
    test = pytest.mark.usefixtures("without_type_checks")(test)
    return pytest.mark.skipif(too_old, reason=reason)(test)


GRIDS = ((1, 1, 1, 1), (1, 1, 3, 3), (3, 1, 2, 1), (1, 2, 1, 3), (2, 5, 3, 2), (1, 3, 8, 5))
"""Batch, latent frames, rows, columns: single ones of each, and more than was traced with."""

CHOSEN = {
    "norm-by-latents": (
        ("decode",),
        ["magvit2_compress_space_time"],
        dict(norm="group", norm_groups=4),
    ),
    "attention": (
        ("encode",),
        ["compress_time", "cond_attend_space", ("attend_time", {"window": 3})],
        dict(quantizer="fsq"),
    ),
    "patches": (
        ("encode", "decode"),
        ["factorized_residual"],
        dict(patch_size=(2, 2), separate_first_frame_encoding=True, quantizer="continuous-kl"),
    ),
}
"""With `exported`, most ways of looking at the past, of coding, and of giving the inputs."""


@pytest.fixture
def without_tracing(monkeypatch):
    """Programs are the parts themselves: what is in question is not what tracing makes of them."""
    written = {}

    def write(program, part, path):
        path.write_text("a program")
        written[path] = part

    monkeypatch.setattr(exporting, "trace", lambda part, example: None)
    for kind in FORMATS.values():
        monkeypatch.setattr(kind, "write", write)
        monkeypatch.setattr(kind, "load", lambda path: written[path])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tokenizer of several ways, its programs in both formats, and their agreement with it."""
    tokenizer = build("compress_time", "cond_residual", patch_size=2, quantizer="lfq-several")
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as context:
        context.setattr(jaxtyping.config, "jaxtyping_disable", True)
        agreements = export_tokenizer(tokenizer, folder, ["onnx", "pt2"])
        programs = {file: FORMATS[file.split(".")[1]].load(folder / file) for file in agreements}
    return tokenizer, folder, programs, agreements


def check(tokenizer, folder, formats, parts=("encode", "decode"), grids=GRIDS):
    agreements = export_tokenizer(tokenizer, folder, formats, parts)
    assert list(agreements) == [f"{part}.{name}" for part in parts for name in formats]
    for file, agreement in agreements.items():
        program = FORMATS[file.split(".")[1]].load(folder / file)
        check_program(tokenizer, program, file, agreement, grids)


def check_program(tokenizer, program, file, agreement, grids=GRIDS):
    part = file.split(".")[0]
    again = compare(make_part(tokenizer, part), program, file, grids)
    for found in (agreement, again):
        assert found.max_error < 1e-5
        assert found.num_other_codes <= 1
        assert bool(found.num_codes) == (part == "encode" and bool(tokenizer.codebook_size))


@exports
@pytest.mark.parametrize("file", ["encode.onnx", "encode.pt2", "decode.onnx", "decode.pt2"])
def test_programs_are_the_tokenizer(exported, file):
    tokenizer, _, programs, agreements = exported
    check_program(tokenizer, programs[file], file, agreements[file])


@pytest.mark.slow
@exports
@pytest.mark.parametrize("name", CHOSEN)
def test_onnx(name, tmp_path):
    parts, layers, options = CHOSEN[name]
    check(build(*layers, **options), tmp_path, ["onnx"], parts)


@pytest.mark.slow
@exports
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("pad_mode", ["constant", "replicate"])
def test_every_quantizer(quantizer, pad_mode, tmp_path):
    tokenizer = build("compress_space", "residual", quantizer=quantizer, pad_mode=pad_mode)
    check(tokenizer, tmp_path, ["onnx", "pt2"])


@pytest.mark.slow
@exports
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer(layer, tmp_path):
    check(build("compress_space", "compress_time", layer), tmp_path, ["onnx", "pt2"])


@pytest.mark.slow
@exports
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(name, tmp_path):
    check(narrow(name), tmp_path, ["onnx", "pt2"], grids=GRIDS[:5])


@exports
def test_the_description_is_all_that_a_consumer_needs(exported):
    import onnxruntime

    tokenizer, folder, *_ = exported
    about = json.loads((folder / EXPORT_FILE).read_text())
    assert about["fingerprint"] == fingerprint(tokenizer)
    assert about["value_range"] == [-1, 1]
    sizes = {"batch": 2, "frames": 1 + 3 * about["time_factor"], "latent_frames": 4}
    sizes |= {"height": 5 * about["space_factor"], "rows": 5}
    sizes |= {"width": 3 * about["space_factor"], "columns": 3}
    video = torch.rand(2, 3, 7, 10, 6) * 2 - 1
    values = {"cond": torch.randn(2, 6), "video": video}
    for name in ("encode", "decode"):
        program = about["programs"][name]
        session = onnxruntime.InferenceSession(folder / program["files"][0])
        for ports, described in (
            (session.get_inputs(), program["inputs"]),
            (session.get_outputs(), program["outputs"]),
        ):
            types = {"float32": "tensor(float)", "int64": "tensor(int64)"}
            assert [(p.name, p.shape, p.type) for p in ports] == [
                (d["name"], d["shape"], types[d["dtype"]]) for d in described
            ]
        given = {p["name"]: values[p["name"]].numpy() for p in program["inputs"]}
        (got,) = session.run(None, given)
        (port,) = program["outputs"]
        assert list(got.shape) == [sizes.get(axis, axis) for axis in port["shape"]]
        values[port["name"]] = torch.from_numpy(got)
    assert torch.equal(values["codes"], tokenizer.tokenize(video, values["cond"]))


@exports
def test_sizes_that_do_not_fit_are_refused(exported):
    encode, cond = exported[2]["encode.pt2"], torch.zeros(1, 6)
    assert encode(torch.zeros(1, 3, 3, 4, 6), cond).shape == (1, 2, 2, 3, 3)
    for shape in ((1, 3, 2, 4, 6), (1, 3, 3, 5, 6), (1, 3, 3, 4, 7), (1, 1, 3, 4, 6)):
        with pytest.raises((AssertionError, RuntimeError)):
            encode(torch.zeros(shape), cond)


@pytest.mark.parametrize("quantizer", ["lfq", "continuous"])
def test_a_part_is_the_tokenizer_and_leaves_it_as_it_was(quantizer):
    tokenizer = build("compress_space", quantizer=quantizer).train()
    for name, unused in (("encode", "decoder"), ("decode", "encoder")):
        part = make_part(tokenizer, name)
        held = {p.data_ptr() for p in part.parameters()}
        other = {p.data_ptr() for p in getattr(tokenizer, unused).parameters()}
        assert held == {p.data_ptr() for p in tokenizer.parameters()} - other
        assert not any(module.training for module in part.modules())
    assert all(module.training for module in tokenizer.modules())
    video = torch.rand(2, 3, 3, 4, 6) * 2 - 1
    quantized, codes = tokenizer.quantize(tokenizer.encode(video))
    codes = quantized if codes is None else codes
    assert torch.equal(make_part(tokenizer, "encode")(video), codes)
    assert torch.equal(make_part(tokenizer, "decode")(codes), tokenizer.decode(quantized))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 64, 65])
def test_the_scan_dynamic_length_is_the_scan(length):
    # So near to 1 that the first value reaches the last.
    decay, value = 1 - 0.1 * torch.rand(2, length, 3), torch.randn(2, length, 3)
    assert torch.equal(_scan_dynamic_length(decay, value), linear_scan(decay, value))


# What is not right is not let through


def tampered(part, change):
    return lambda *given: change(part(*given))


@pytest.mark.parametrize(
    "change",
    [
        lambda video: video + 2e-3 * video.abs().max().clamp(min=1),
        lambda video: torch.where(video == video.max(), torch.nan, video),
        lambda video: video[:, :, 1:],
        lambda video: video.double(),
    ],
)
def test_other_frames_are_a_mismatch(change):
    part = make_part(build("compress_space"), "decode")
    assert compare(part, part, "it").max_error == 0
    with pytest.raises(ProgramMismatch, match=r"decode\.onnx is wrong: for codes of shape"):
        compare(part, tampered(part, change), "decode.onnx")


@pytest.mark.parametrize("quantizer", ["lfq-several", "fsq"])
def test_other_codes_are_a_mismatch_but_where_rounding_decides(quantizer):
    part = make_part(build("compress_space", quantizer=quantizer), "encode")
    same = compare(part, part, "it")
    assert (same.max_error, same.num_other_codes) == (0, 0)
    assert same.num_codes > 0

    def another(codes):
        codes = codes.clone()
        codes.view(-1)[0] = (codes.view(-1)[0] + 1) % part.tokenizer.codebook_size
        return codes

    with pytest.raises(ProgramMismatch, match="1 wrong codes of"):
        compare(part, tampered(part, another), "it")

    # Latents on the very threshold, which every rounding moves to one side or the other.
    last = part.tokenizer.encoder.layers[-1].conv
    torch.nn.init.zeros_(last.weight[0])
    torch.nn.init.zeros_(last.bias[:1])

    def above(*given):
        with torch.no_grad():
            latents = part.tokenizer.encode(*given)
        latents[:, :1] += 1e-7
        return part.tokenizer.quantize(latents).codes

    found = compare(part, above, "it")
    assert found.num_codes == same.num_codes
    if quantizer == "lfq-several":
        assert found.num_other_codes == found.num_codes // 3
        assert f"{found.num_other_codes} differ by rounding" in str(found)


def test_a_mismatch_leaves_older_files_and_no_others(tmp_path, monkeypatch, without_tracing):
    (tmp_path / "decode.pt2").write_text("older")

    monkeypatch.setattr(FORMATS["pt2"], "load", lambda path: lambda codes: torch.zeros(1))
    with pytest.raises(ProgramMismatch):
        export_tokenizer(build("compress_space"), tmp_path, ["pt2"], ["decode"])
    assert [path.name for path in tmp_path.iterdir()] == ["decode.pt2"]
    assert (tmp_path / "decode.pt2").read_text() == "older"


def test_what_is_missing_is_said_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(export_programs, "OLDEST_TORCH", "99.0")
    with pytest.raises(ValueError, match=r"needs torch 99\.0 or newer"):
        export_tokenizer(build("compress_space"), tmp_path / "new", ["pt2"])
    monkeypatch.setattr(export_programs, "OLDEST_TORCH", "2.0")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install 'magvit2-pytorch\[export\]'"):
        export_tokenizer(build("compress_space"), tmp_path / "new", ["pt2", "onnx"])
    assert not (tmp_path / "new").exists()

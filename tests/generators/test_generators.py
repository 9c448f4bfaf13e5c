"""Laws of all generators, over the registry."""

import json
import math

import pytest
import torch

from magvit2_pytorch.generators import (
    GENERATOR_PRESETS,
    GENERATORS,
    build_generator,
    load_generator,
)
from tests.generators.models import generator, random_codes


@pytest.mark.parametrize("kind", GENERATORS)
def test_an_untrained_generator_knows_nothing(kind):
    torch.manual_seed(0)
    model = build_generator(kind=kind, levels=((8, 8, 8, 5, 5, 5),), dim=32, depth=2, heads=2)
    codes = random_codes(model, 1, 2, 4, 4)
    loss, _terms = model.loss(codes, draws=torch.Generator().manual_seed(0))
    assert float(loss.detach()) / math.log(2) == pytest.approx(math.log2(64000), abs=0.05)
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == [
        name for name in ("first_frame",) if name not in dict(model.named_parameters())
    ]


@pytest.mark.parametrize("kind", GENERATORS)
def test_no_tensor_has_an_axis_of_the_codebook(kind):
    with torch.device("meta"):
        model = build_generator(kind=kind, levels=((2,) * 18,), dim=64, depth=1, heads=2)
    assert max(max(p.shape) for p in model.parameters()) < 2**11


@pytest.mark.parametrize("kind", GENERATORS)
def test_saved_and_loaded_generators_are_equal(kind, tmp_path):
    model = generator(kind, levels=((3, 3), (2, 2)), classes=("a", "b"), dtype=torch.float32)
    model.save_pretrained(tmp_path / "g")
    again = load_generator(tmp_path / "g")
    assert again.config == model.config
    codes = random_codes(model, 1, 2, 3, 3)
    losses = [m.loss(codes, draws=torch.Generator().manual_seed(0))[0] for m in (model, again)]
    assert torch.equal(*losses)
    assert json.loads((tmp_path / "g" / "config.json").read_text())["kind"] == kind


@pytest.mark.parametrize("kind", ["autoregressive", "residual"])
def test_generators_of_tokens(kind):
    model = generator(kind, num_tokens=4)
    assert model.config.from_dict(model.config.to_dict()) == model.config
    model.loss(random_codes(model, 1, 2, 1, 4))[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    # Bytes that were compressed with a generator of grids depend on its options.
    assert "num_tokens" not in generator(kind).config.to_dict()
    with pytest.raises(ValueError, match="num_tokens is 0"):
        generator(kind, num_tokens=0)


@pytest.mark.parametrize("name", GENERATOR_PRESETS)
def test_presets_have_the_parameters_that_they_state(name):
    with torch.device("meta"):
        model = build_generator(**GENERATOR_PRESETS.model(name), levels=((8, 8, 8, 5, 5, 5),))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    text = GENERATOR_PRESETS[name].read_text(encoding="utf-8")
    stated = float(text.split(" M parameters")[0].split()[-1])
    assert millions == pytest.approx(stated, rel=0.01)


def test_a_folder_without_a_generator(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no config"):
        load_generator(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer"):
        load_generator(tmp_path)

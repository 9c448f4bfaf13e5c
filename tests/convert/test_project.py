"""Weights by a table of names: every tensor of both sides has a place."""

import pytest
import torch
from torch import nn

from magvit2_pytorch.convert import o2_magvit2
from magvit2_pytorch.convert.conversion import tokenizer_from_state
from magvit2_pytorch.convert.project import (
    SAME,
    Row,
    convert,
    find_sources,
    nested,
    without_axes,
)
from tests.o2_magvit2 import Shape, made_state, tokenizer_shapes

HALF = (Row("fc", "0"), Row(("scale", "shift"), "1"))
TABLE = (
    Row("first", "stages.0.0"),
    Row("last", "stages.-1.0"),
    *nested("level_{level}", "stages.{level+1}", HALF),
    Row("stage_{level}.gains", "stages.{level}.1"),
    Row("optimizer.step_{number}", None),
)


def network():
    """Three stages of a linear layer and another with twice as many outputs."""
    pair = [nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4, bias=False)) for _ in range(3)]
    return nn.ModuleDict({"stages": nn.ModuleList(pair)})


def their_state():
    shapes = {"first": (3, 2), "last": (3, 2), "level_0.fc": (3, 2)}
    state = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.randn(3) for name in shapes}
    for level in range(2):
        for part in ("scale", "shift"):
            state[f"level_{level}.{part}.weight"] = torch.randn(2, 3)
    return state | {"stage_0.gains.weight": torch.randn(4, 3), "optimizer.step_7": torch.ones(1)}


def test_numbers_parts_and_positions_from_the_end():
    state, module = their_state(), network()
    weights = convert(state, TABLE, module)
    module.load_state_dict(weights)
    assert torch.equal(weights["stages.0.0.weight"], state["first.weight"])
    assert torch.equal(weights["stages.1.0.bias"], state["level_0.fc.bias"])
    assert torch.equal(weights["stages.2.0.weight"], state["last.weight"])
    # Of stage 0 the row of a level does not fit, so a later row counts.
    assert find_sources(TABLE, module)["stages.0.1.weight"].theirs == ("stage_0.gains.weight",)
    joined = torch.cat((state["level_1.scale.weight"], state["level_1.shift.weight"]))
    assert torch.equal(weights["stages.2.1.weight"], joined)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first.bias": None}, "it lacks first.bias"),
        ({"level_1.shift.weight": None}, "it lacks level_1.shift.weight"),
        ({"other.weight": torch.ones(1)}, "it has other.weight too many"),
        ({"level_5.fc.bias": torch.ones(3)}, "it has level_5.fc.bias too many"),
        ({"level_1.scale.weight": torch.ones(4, 3)}, r"scale.weight is \(4, 3\), not \(2, 3\)"),
        ({"first.bias": torch.ones(3, dtype=torch.int64)}, "first.bias is torch.int64"),
    ],
)
def test_every_tensor_of_theirs_must_have_its_place(change, message):
    state = {name: x for name, x in (their_state() | change).items() if x is not None}
    with pytest.raises(ValueError, match=message):
        convert(state, TABLE, network())


def test_every_tensor_of_ours_must_have_a_row():
    with pytest.raises(ValueError, match=r"no row for stages\.0\.1\.weight"):
        convert(their_state(), TABLE[:-2], network())


@pytest.mark.parametrize(
    ("layout", "shape", "their_shape"),
    [
        (SAME, (4, 3, 1, 5, 5), (4, 3, 1, 5, 5)),
        (without_axes(2), (4, 3, 1, 5, 5), (4, 3, 5, 5)),
        (without_axes(2), (4, 3), (4, 3)),
        (without_axes(3, 4), (4, 3, 5, 1, 1), (4, 3, 5)),
        (without_axes(3, 4), (4,), (4,)),
    ],
)
@pytest.mark.parametrize("num", [1, 2])
def test_a_layout_goes_both_ways(layout, shape, their_shape, num):
    ours = torch.randn(shape)
    theirs = layout.split(ours, num)
    assert [x.shape for x in theirs] == [(their_shape[0] // num, *their_shape[1:])] * num
    assert torch.equal(layout.join(list(theirs)), ours)


@pytest.mark.parametrize("is_video", [True, False])
def test_the_weights_go_back_to_where_they_came_from(is_video):
    shape = Shape(32, (1, 2), (is_video,), 2, 6, is_video=is_video)
    state = made_state(tokenizer_shapes(shape), 0)
    tokenizer, back = tokenizer_from_state(state), {}
    for name, row in find_sources(o2_magvit2.names(state), tokenizer).items():
        parts = row.layout.split(tokenizer.state_dict()[name], len(row.theirs))
        back |= dict(zip(row.theirs, parts, strict=True))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())

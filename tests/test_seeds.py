"""Seeds by key: stored values, near keys, and that nothing else makes a seed of a key."""

import ast
from itertools import product
from pathlib import Path

import pytest

import magvit2_pytorch
from magvit2_pytorch.runtime import keyed_seed

PACKAGE = Path(magvit2_pytorch.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# python -c "from magvit2_pytorch.runtime import keyed_seed; print(keyed_seed(*KEY))"
STORED = {
    (): 8203414616412130826,
    (0,): 3229673090972834898,
    ("step", 42, 0, 0, 0): 4499003476003621198,
    ("item", -1, 2**70): 6122495498987106878,
    ("caf\udce9",): 3654371097160569913,
}


@pytest.mark.parametrize(("key", "seed"), STORED.items(), ids=ascii)
def test_a_key_has_the_same_seed_for_ever(key, seed):
    assert keyed_seed(*key) == seed


def test_near_keys_differ():
    keys = list(product(range(-20, 20), range(40)))
    keys += [("1",), (1,), (11,), ("1", 1), (1, "1"), ("1", "1"), ("i1:1",), ("", "")]
    keys += [("ab", "c"), ("a", "bc"), ("abc",), ("as", "b"), ("a", "sb"), ("",), ()]
    keys += [("\ud83d\ude00",), ("\U0001f600",)]
    seeds = [keyed_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # torch's generator on the CPU takes the lower 32 bits.
    assert len({seed % 2**32 for seed in seeds}) == len(keys)


def test_no_other_function_makes_a_seed_of_a_key():
    """Neither `hash`, whose values Python does not promise, nor random.Random of a string."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            function = ast.unparse(node.func)
            assert function != "hash", f"{path}:{node.lineno}"
            if function == "random.Random":
                (argument,) = map(ast.unparse, node.args)
                assert argument.startswith("keyed_seed("), f"{path}:{node.lineno}"

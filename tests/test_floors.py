"""Imports go down only: the house's floors, read from the source."""

import ast
from functools import cache
from pathlib import Path

import pytest

import magvit2_pytorch

PACKAGE = Path(magvit2_pytorch.__file__).parent
FLOORS = {
    "types": 0, "functional": 0, "config": 0, "atomic": 0, "weights": 0, "runtime": 0, "version": 0,
    "layers": 1, "media": 1, "metrics": 1,
    "quantizers": 2, "discriminators": 2, "losses": 2,
    "tokenizer": 3,
    "tokenizer_1d": 4, "super_resolution": 4,
    "codes": 4, "convert": 4,
    "data": 5, "generators": 5,
    "training": 6,
    "pipelines": 7,
    "evaluation": 8,
    "cli": 9,
}  # fmt: skip
LAZY = {"__init__", "__main__"}
MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("")
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).with_suffix("").as_posix() not in LAZY
)


def imported_rooms(source: str) -> set[str]:
    """Rooms of this package that a module imports, wherever in it."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {n.split(".")[1] for n in names if n.startswith("magvit2_pytorch.")}
    return rooms - {"__version__"}


def source_of(module: Path) -> str:
    return (PACKAGE / module).with_suffix(".py").read_text(encoding="utf-8")


def test_imports_go_down_only():
    wrong = []
    for module in MODULES:
        room = module.parts[0]
        for other in imported_rooms(source_of(module)):
            down = FLOORS[other] < FLOORS[room] or FLOORS[room] == FLOORS[other] == 0
            if other != room and not down:
                wrong.append(
                    f"{module} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})"
                )
    assert wrong == []


@cache
def imported_modules(module: Path) -> set[Path]:
    """Modules of this package that a module imports, anywhere in it, for type checks included."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / module).with_suffix(".py").read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    paths = (Path(*name.split(".")[1:]) for name in names if name.startswith("magvit2_pytorch."))
    return {path for path in paths if path in MODULES and path != module}


def reached(module: Path) -> set[Path]:
    """Modules that importing a module imports, directly or through others."""
    seen, left = set(), [module]
    while left:
        new = imported_modules(left.pop()) - seen
        seen |= new
        left += new
    return seen


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_there_is_no_import_circle(module):
    assert module not in reached(module)


def test_the_training_loop_knows_no_model():
    for module in ("trainer", "dry_run"):
        rooms = {other.parts[0] for other in reached(Path("training", module))}
        assert not rooms & {"tokenizer", "losses", "discriminators", "quantizers"}


def test_the_tokenizer_knows_no_loss():
    for module in (m for m in MODULES if m.parts[0] == "tokenizer"):
        source = source_of(module)
        assert not imported_rooms(source) & {"losses", "discriminators", "training", "data"}
        assert "torch.optim" not in source


def test_modules_stay_readable():
    lengths = {str(module): len(source_of(module).splitlines()) for module in MODULES}
    long = {name: length for name, length in lengths.items() if length > 360}
    assert long == {}, "look for the second idea inside"

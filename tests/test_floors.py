"""Who may import whom. A package imports the floors below it only; those of one floor are ignorant of each other."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"errors", "lean"},
    {"tree", "files", "metrics"},
    {"nn"},
    {"models"},
    {"methods", "objectives", "data"},
    {"hub", "decode", "parallel"},
    {"kinds", "distill", "selfinstruct"},
    {"train"},
    {"sweep", "plan"},
    {"cli"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
FILES = [p for top in ("ftjax", "configs", "experiments", "launch") for p in sorted((ROOT / top).rglob("*.py"))]


def imports(path):
    """Absolute dotted names, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
    top, *rest = path.relative_to(ROOT).with_suffix("").parts
    found = [name.split(".") for name in imports(path)]
    ours = {name[1] for name in found if name[0] == "ftjax" and len(name) > 1}
    if top == "configs":
        allowed = {"configs", "ml_collections", *sys.stdlib_module_names}
        assert {name[0] for name in found} <= allowed
    elif top == "ftjax" and rest[0] not in ("__init__", "__main__"):  # those two are the faces of it all
        home = rest[0]
        assert home in FLOOR, f"ftjax/{home} has no floor yet"
        assert {name for name in ours - {home} if FLOOR[name] >= FLOOR[home]} == set()
        assert not {name[0] for name in found} & {"experiments", "launch", "configs", "tests"}
        if home not in ("nn", "models"):
            assert not [name for name in found if name[:2] == ["flax", "linen"]]

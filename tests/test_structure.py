"""What the folders promise: methods don't import each other, imports point down, small rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "jaxmethods"
METHODS = {"commformer", "interpret", "kid", "lsm", "merging", "novo", "obd", "rsfm", "vqcd"}
# From the top down; a room imports its own modules and rooms of the lines below.
ORDER = [
    {"__init__"},
    {"cli", "diagnosis"},
    {"runs"},
    {"field_help", "registry", "training"},
    {"reports"},
    {"devices", "installation"},
    METHODS,
    {"bilevel", "offline_rl", "records", "stages"},
    {"language", "sql"},
    {"models"},
    {"data"},
    {"envs"},
    {"layout", "method", "numerics", "plotting"},
    {"config", "files"},
    {"errors", "fields", "yaml_text"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def imports(file: Path) -> set[str]:
    """Rooms that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxmethods":
            names = [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names if name.name.startswith("jaxmethods.")]
        else:
            continue
        found |= {name.split(".")[1] for name in names}
    return found - {"__version__"}


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file):
    room = file.relative_to(ROOT).with_suffix("").parts[0]
    assert room in LEVEL, "a new room has a place in ORDER"
    up = {other for other in imports(file) - {room} if LEVEL.get(other, 0) <= LEVEL[room]}
    assert not up


@pytest.mark.parametrize("folder", sorted({file.parent for file in MODULES}), ids=str)
def test_a_folder_has_at_most_fourteen_modules(folder):
    assert len(list(folder.glob("*.py"))) <= 14


def test_texts_are_utf_8_whatever_the_locale():
    for file in MODULES:
        nodes = ast.walk(ast.parse(file.read_text()))
        for call in (node for node in nodes if isinstance(node, ast.Call)):
            if getattr(call.func, "attr", "") in ("read_text", "write_text"):
                named = [keyword.arg for keyword in call.keywords]
                assert "encoding" in named, f"{file}, line {call.lineno}"

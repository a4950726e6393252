"""What docstrings promise: one plain voice, and every argument of what is exported or long."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "jaxmethods"
FILES = sorted(ROOT.rglob("*.py"))
DIALECT = re.compile(r"\AOf\b|\b(so many|told|tells)\b")


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Lines and texts of modules, classes and functions, and of what stands below names.

    The fields of configs are left out: their texts are the command line's help.
    """
    for node in ast.walk(ast.parse(file.read_text())):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        bases = [ast.unparse(base) for base in getattr(node, "bases", [])]
        inside = isinstance(node, ast.Module | ast.ClassDef)
        inside &= not any(base.endswith(("Config", "Rule")) for base in bases)
        for statement in body if inside else body[:1]:
            value = getattr(statement, "value", None)
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_docstrings_are_plain_sentences(file):
    assert [(line, text) for line, text in docstrings(file) if DIALECT.search(text)] == []


def exported() -> dict[Path, set[str]]:
    """File -> names of it in some package's `__all__`."""
    found = defaultdict(set)
    for file in ROOT.rglob("__init__.py"):
        body = ast.parse(file.read_text()).body
        names = {
            name.value
            for node in body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            for name in node.value.elts
        }
        for node in body:
            if isinstance(node, ast.ImportFrom):
                place = ROOT.parent.joinpath(*node.module.split(".")).with_suffix(".py")
                found[place] |= {name.name for name in node.names if name.name in names}
    return found


def arguments(function: ast.FunctionDef) -> list[str]:
    """Names of what a function takes, but for a method's object."""
    given = function.args
    names = [one.arg for one in given.posonlyargs + given.args + given.kwonlyargs]
    return [name for name in names if name not in ("self", "cls")]


def public_functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef]:
    """Functions and methods without a leading underscore in their or their class's name."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


EXPORTED = [
    (file, node)
    for file, names in sorted(exported().items())
    if file.is_file()
    for node in ast.parse(file.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name in names
]
LONG = [
    (file, node)
    for file in FILES
    for node in public_functions(ast.parse(file.read_text()).body)
    if len(arguments(node)) >= 4
]
"""Those with four arguments or more, exported or not."""
EXPLAINED = {(file, node.lineno): (file, node) for file, node in EXPORTED + LONG}.values()


@pytest.mark.parametrize(
    ("file", "function"), EXPLAINED, ids=[f"{file.stem}.{node.name}" for file, node in EXPLAINED]
)
def test_functions_say_what_they_take_and_return(file, function):
    text = ast.get_docstring(function) or ""
    given = text.partition("Args:\n")[2].partition("\n\n")[0]
    names = arguments(function)
    missing = [name for name in names if not re.search(rf"(^|[\s`]){name}\b", given)]
    assert missing == [], f"{file.name}: {function.name}"
    if function.returns is not None and ast.unparse(function.returns) != "None":
        assert re.search(r"^(Returns|Yields):$", text, re.MULTILINE)


def test_there_are_functions_to_look_at():
    assert len(EXPORTED) > 100
    assert len(LONG) > 200

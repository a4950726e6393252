"""What docstrings promise: one plain voice, and every argument of what is exported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "jaxmethods"
FILES = sorted(set(ROOT.rglob("*.py")) - {ROOT / "config.py"})
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

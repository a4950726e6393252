"""The documentation site without building it: every export has a page, every link a target."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import runpy
import shlex
from pathlib import Path

import pytest

from jaxmethods.config import merge, parse_overrides, read_yaml
from jaxmethods.registry import parse_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HOOK = runpy.run_path(str(DOCS / "hooks" / "api_pages.py"))
GENERATED = HOOK["generated"]()
WRITTEN = {
    str(file.relative_to(DOCS)): file.read_text(encoding="utf-8") for file in DOCS.rglob("*.md")
}
PAGES = WRITTEN | GENERATED


def targets(page: str) -> list[str]:
    """Links of a page to others and to files, code left out."""
    text = re.sub(r"```.*?```|`[^`\n]*`(?!\])", "", PAGES[page], flags=re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_have_targets(page):
    for link in targets(page):
        path = link.partition("#")[0]
        if not path:
            continue
        place = (DOCS / page).parent.joinpath(path).resolve()
        name = str(place.relative_to(DOCS))
        assert name in PAGES or place.is_file(), link


def exported() -> list[str]:
    """Every name of every `__all__`, qualified."""
    found = []
    for file in sorted((ROOT / "jaxmethods").rglob("__init__.py")):
        name = ".".join(file.relative_to(ROOT).parts[:-1])
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found += [f"{name}.{each}" for each in ast.literal_eval(node.value)]
    return [name for name in found if name.count(".") > 1]


def test_every_exported_name_has_a_place_in_the_reference():
    described = set(re.findall(r"^::: (\S+)$", "\n".join(GENERATED.values()), re.MULTILINE))
    for name in exported():
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        if inspect.ismodule(value):
            assert value.__name__ in described, name
            continue
        home = getattr(inspect.unwrap(value), "__module__", module)
        own = getattr(value, "__name__", attribute)
        assert {f"{home}.{own}", home, name} & described, name


def test_the_equation_index_has_every_paper():
    papers = set(re.findall(r"arxiv\.org/abs/([\d.]+)", (ROOT / "CITATION.cff").read_text()))
    assert len(papers) == 13
    assert papers <= set(re.findall(r"arxiv\.org/abs/([\d.]+)", WRITTEN["equations.md"]))


def test_functions_of_the_equation_index_exist():
    """Names behind a link to the reference, `package.module.name` and what follows after commas."""
    cells = re.findall(r"\[`([^\]]+)`\]\(api/", WRITTEN["equations.md"])
    assert len(cells) > 50
    for cell in cells:
        names = [name.strip("` ") for name in cell.split(",")]
        room = names[0].rpartition(".")[0]
        for name in names:
            full = name if "." in name else f"{room}.{name}"
            parts = full.split(".")
            value = importlib.import_module(f"jaxmethods.{parts[0]}")
            for part in parts[1:]:
                try:
                    value = getattr(value, part)
                except AttributeError:
                    value = importlib.import_module(f"{value.__name__}.{part}")


def commands() -> list[str]:
    """Every `jaxmethods run` of a packaged config that stands on a line of its own."""
    files = [ROOT / "README.md", *DOCS.rglob("*.md"), *(ROOT / "configs").rglob("*.*")]
    found = set()
    for file in files:
        text = re.sub(r"\\\n[#\s]*", "", file.read_text(encoding="utf-8"))
        found |= set(
            re.findall(r"^[# ]*(?:\.venv/bin/)?jaxmethods run (configs/[^#\n]*)", text, re.M)
        )
    return sorted({re.sub(r"\[(--.*?)\]", r"\1", command).strip() for command in found})


@pytest.mark.parametrize("command", commands())
def test_a_command_that_is_shown_is_understood(command):
    path, *rest = shlex.split(command)
    rest = [word for word in rest if word not in ("--resume", "--help", "--distributed")]
    changes = parse_overrides(rest)
    changes.pop("out", None)
    parse_config(merge(read_yaml(ROOT / path), changes), command)

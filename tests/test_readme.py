"""Python blocks of READMEs and of the documentation print what their comments say.

The blocks of a page run one after another in one namespace, as a reader meets them; each prints
something, and the comment behind a `print` is what it prints.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def blocks(file: Path) -> list[str]:
    """The Python blocks of a page, those inside of tabs and lists among them."""
    return [dedent(code) for _, code in BLOCK.findall(file.read_text())]


PAGES = [
    pytest.param(blocks(file), id=str(file.relative_to(ROOT)))
    for file in (
        ROOT / "README.md",
        *sorted(ROOT.glob("configs/*/README.md")),
        *sorted(ROOT.glob("docs/**/*.md")),
    )
    if blocks(file)
]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_print_what_they_promise(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "page"}
    for block in page:
        promised = re.findall(r"print\(.*\)  # (.*)", block)
        assert promised, block
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "page", "exec"), namespace)
        assert printed.getvalue().splitlines() == promised

"""Python snippets of the READMEs print what their comments say."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SNIPPETS = [
    pytest.param(snippet, id=f"{file.relative_to(ROOT)}-{number}")
    for file in (ROOT / "README.md", *sorted(ROOT.glob("configs/*/README.md")))
    for number, snippet in enumerate(
        re.findall(r"```python\n(.*?)```", file.read_text(), re.DOTALL)
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_prints_what_it_promises(snippet):
    promised = re.findall(r"print\(.*\)  # (.*)", snippet)
    assert promised
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, "README", "exec"), {})
    assert printed.getvalue().splitlines() == promised

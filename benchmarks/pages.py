"""Parts of documentation pages that commands write, so that pages and rows say the same."""

from __future__ import annotations

from pathlib import Path

from jaxmethods.files import write_atomically

DOCS = Path(__file__).parents[1] / "docs"


def part(text: str, name: str) -> str:
    """What stands in a page between the comments of a name.

    Raises:
        ValueError: they are not there.
    """
    before, found, rest = text.partition(f"<!-- {name} -->\n")
    inside, closed, _ = rest.partition(f"\n<!-- end of {name} -->")
    if not found or not closed:
        raise ValueError(f"page: expected the comments of {name!r} after {before[:40]!r}")
    return inside


def replace_part(page: Path, name: str, content: str) -> None:
    """Writes a page anew with other content between the comments of a name."""
    text = page.read_text(encoding="utf-8")
    old, new = (f"<!-- {name} -->\n{inside}\n<!--" for inside in (part(text, name), content))
    write_atomically(page, text.replace(old, new))

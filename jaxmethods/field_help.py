"""Help for the fields of a config: what `jaxmethods run CONFIG --help` prints."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from jaxmethods import yaml_text
from jaxmethods.fields import REQUIRED, Field, fields

LEGEND = """Every field is a line of the file, or --FIELD VALUE behind it, which wins.
VALUE is YAML: 3, 0.5, true, null, text, "[a, b]", "{a: 1}".
Behind = is the value of this run.
"""
INDENT = " " * 6
LONGEST = 60
"""A longer value isn't shown."""


def show_fields(
    model: type[BaseModel], values: Mapping[str, Any], console: Console | None = None
) -> None:
    """Prints every field: its flag, what it takes, its value, what it is for.

    Args:
        model: the config's class.
        values: what the file and the command line give.
        console: by default the standard output.
    """
    console = console or Console()
    console.print(LEGEND, highlight=False, markup=False)
    for field in fields(model, values):
        if field.section:
            console.print()
        console.print(_line(field), soft_wrap=True)
        if field.about:
            about = field.about.replace("None:", "null:")
            text = fill(about, console.width, initial_indent=INDENT, subsequent_indent=INDENT)
            console.print(Text(text, style="dim"), soft_wrap=True)


def flag(field: Field) -> str:
    """`--graph.sparsity`; an element of a list has no flag of its own and is shown as it is."""
    return field.path if "[]" in field.path else f"--{field.path}"


def _line(field: Field) -> Text:
    line = Text.assemble("  ", (flag(field), "bold"))
    if field.value is REQUIRED:
        line.append(" (required)", "red")
    elif not field.section or field.value is None:
        line.append(f" = {_shown(field.value)}", "cyan")
        if field.default not in (REQUIRED, field.value):
            line.append(f" (default {_shown(field.default)})")
    return line.append(f"  {field.words}")


def _shown(value: Any) -> str:
    text = yaml_text.dump(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."

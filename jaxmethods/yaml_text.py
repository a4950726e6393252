"""YAML without its surprises, for configs: text to values and back.

Integers and text are read as in YAML 1.2: `010` is ten (1.1 took it for eight), `12:30` and
`2026-01-02` are text. A field that is there twice is an error, and so is a file of a few lines that
stands for billions of values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.events import AliasEvent

MOST_VALUES, MOST_CHARACTERS = 1_000_000, 200
"""How many values a text may stand for (with aliases), and the longest value in an error."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without its surprises."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self.values = 0
        self.values_of: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Counts values as often as aliases repeat them: a few lines can stand for billions."""
        mark, alias, before = self.peek_event().start_mark, self.check_event(AliasEvent), 0
        if not alias:
            self.values += 1
            before = self.values - 1
        node = super().compose_node(parent, index)
        if not alias:
            self.values_of[id(node)] = self.values - before
        elif id(node) in self.values_of:
            self.values += self.values_of[id(node)]
        else:
            raise ComposerError(None, None, "an alias stands for what it is part of", mark)
        if self.values > MOST_VALUES:
            raise ComposerError(None, None, f"stands for more than {MOST_VALUES:,} values", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        known = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in known:
                problem = f"field {shortened(key.value)} is there twice"
                raise ComposerError(None, None, problem, key.start_mark)
            known.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key))
        return node


_RESOLVED_AFRESH = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _RESOLVED_AFRESH]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def load(text: str) -> Any:
    """The content of YAML text. Raises `yaml.YAMLError`."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise
    except RecursionError as error:
        raise yaml.MarkedYAMLError(problem="is nested too deeply") from error
    except Exception as error:  # explicit tags (!!int, !!timestamp) raise of everything
        raise yaml.MarkedYAMLError(problem=f"a value that its tag doesn't fit ({error})") from error


def dump(value: Any) -> str:
    """A value as YAML on one line, as it can be written behind a field's flag."""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10**9, sort_keys=False)
    return text.removesuffix("...\n").rstrip("\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(below) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(below) for below in value]
    return str(value) if isinstance(value, Path) else value


def shortened(value: Any) -> str:
    """What came, on one line that can be read."""
    text = dump(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."

"""Configs: one line per mistake, with the nearest right name."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from jaxmethods.config import (
    Config,
    ConfigError,
    merge,
    nearest,
    parse_overrides,
    read_yaml,
    validate,
)


class Inner(Config):
    sparsity: Annotated[float, Field(gt=0, le=1)] = 0.4
    kind: Literal["learned", "full"] = "learned"


class Outer(Config):
    graph: Inner = Inner()
    seed: int = 0
    name: str = "x"


def message(values) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(Outer, values, "run.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"sead": 1}, "config run.yaml: sead: unknown field (did you mean 'seed'?)"),
        (
            {"graph": {"sparsty": 0.5}},
            "config run.yaml: graph.sparsty: unknown field (did you mean 'sparsity'?)",
        ),
        (
            {"graph": {"sparsity": -0.1}},
            "config run.yaml: graph.sparsity: input should be greater than 0, got -0.1",
        ),
        (
            {"graph": {"sparsity": float("nan")}},
            "config run.yaml: graph.sparsity: input should be a finite number, got nan",
        ),
        (
            {"graph": {"kind": "ful"}},
            "config run.yaml: graph.kind: input should be 'learned' or 'full', got 'ful'",
        ),
    ],
)
def test_each_mistake_is_one_line_naming_the_field(values, expected):
    assert message(values) == expected


def test_a_wrong_type_names_what_came():
    text = message({"seed": "many"})
    assert text.startswith("config run.yaml: seed: input should be a valid integer")
    assert text.endswith("got 'many'")


def test_several_mistakes_are_several_lines():
    assert len(message({"seed": "x", "grph": {}}).splitlines()) == 2


def test_configs_are_hashable_and_equal_by_value():
    assert hash(Outer()) == hash(Outer(graph=Inner(sparsity=0.4)))
    assert Outer() == Outer(seed=0)


def test_overrides_nest_and_are_read_as_yaml():
    parsed = parse_overrides(["--graph.sparsity", "0.2", "--seed=3", "--name", "true-name"])
    assert parsed == {"graph": {"sparsity": 0.2}, "seed": 3, "name": "true-name"}


def test_overrides_lie_over_the_file():
    merged = merge({"graph": {"kind": "full", "sparsity": 1.0}}, {"graph": {"sparsity": 0.5}})
    assert merged == {"graph": {"kind": "full", "sparsity": 0.5}}


@pytest.mark.parametrize("arguments", [["--seed"], ["seed", "3"], ["--name", "[1,"]])
def test_unreadable_overrides_are_refused(arguments):
    with pytest.raises(ConfigError, match="command line"):
        parse_overrides(arguments)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: [1, 2", "not valid YAML at line"),
        ("- 1\n- 2\n", "expected a mapping of fields, got list"),
        ("", "expected a mapping of fields, got NoneType"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_bad_yaml_says_where(tmp_path, content, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=expected):
        read_yaml(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read \(No such file"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_nearest_falls_back_to_the_list():
    assert nearest("zzz", ["beta", "alpha"]) == " (known: alpha, beta)"

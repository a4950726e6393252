"""Configs: one line per mistake, with the nearest right name."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from jaxmethods import registry
from jaxmethods.config import (
    Config,
    ConfigError,
    TrainingRunConfig,
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
            "config run.yaml: graph.sparsity: expected a number > 0 and <= 1, got -0.1",
        ),
        (
            {"graph": {"sparsity": float("nan")}},
            "config run.yaml: graph.sparsity: expected a finite number, got nan",
        ),
        (
            {"graph": {"kind": "ful"}},
            "config run.yaml: graph.kind: expected one of learned, full, got 'ful' "
            "(did you mean 'full'?)",
        ),
    ],
)
def test_each_mistake_is_one_line_naming_the_field(values, expected):
    assert message(values) == expected


def test_the_last_of_several_seeds_is_a_seed_too():
    values = {"method": "x", "seed": 2**31 - 2}
    assert validate(TrainingRunConfig, values | {"seeds": 2}, "run.yaml").seeds == 2
    with pytest.raises(ConfigError, match=r"seeds: expected a last seed below 2\^31, got"):
        validate(TrainingRunConfig, values | {"seeds": 3}, "run.yaml")


def test_a_wrong_type_names_what_came():
    text = message({"seed": "many"})
    assert text.startswith("config run.yaml: seed: expected an integer, ")
    assert text.endswith("got 'many'")


def test_several_mistakes_are_several_lines():
    assert len(message({"seed": "x", "grph": {}}).splitlines()) == 2


def test_configs_are_hashable_and_equal_by_value():
    assert hash(Outer()) == hash(Outer(graph=Inner(sparsity=0.4)))
    assert Outer() == Outer(seed=0)


def test_overrides_nest_and_are_read_as_yaml():
    parsed = parse_overrides(["--graph.sparsity", "0.2", "--seed=3", "--name", "true-name"])
    assert parsed == {"graph": {"sparsity": 0.2}, "seed": 3, "name": "true-name"}


def test_the_last_value_of_a_field_counts_and_none_of_another_is_lost():
    assert parse_overrides(["--seed", "1", "--seed", "2"]) == {"seed": 2}
    changed = parse_overrides(["--ppo", "{clip: 0.1}", "--ppo.clip", "0.2"])
    assert changed == {"ppo": {"clip": 0.2}}
    with pytest.raises(ConfigError, match="--ppo: would replace its field gamma, given before"):
        parse_overrides(["--ppo.gamma", "0.9", "--ppo", "{clip: 0.1}"])
    assert parse_overrides(["--ppo", "{clip: 0.1}", "--ppo.gamma", "0.9"]) == {
        "ppo": {"clip": 0.1, "gamma": 0.9}
    }


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
        ("- 1\n- 2\n", "expected a mapping of fields, got a list; write one `field: value` a line"),
        ("", "expected a mapping of fields, got nothing"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_bad_yaml_says_where(tmp_path, content, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=expected):
        read_yaml(path)


def test_yaml_is_utf_8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr("io.text_encoding", lambda encoding, *_: encoding or "ascii")
    path = tmp_path / "run.yaml"
    path.write_bytes("name: \u00e9t\u00e9".encode())
    assert read_yaml(path) == {"name": "\u00e9t\u00e9"}
    for encoding in ("latin-1", "utf-16"):
        path.write_bytes("name: \u00e9t\u00e9".encode(encoding))
        with pytest.raises(ConfigError, match="is not a text file in UTF-8"):
            read_yaml(path)


@pytest.mark.parametrize(
    ("text", "seed", "name"),
    [("010", 10, "010"), ("12", 12, "12"), ("0x1f", 31, "31"), ("1_000", 1000, "1000")],
)
def test_integers_are_those_of_yaml_1_2(tmp_path, text, seed, name):
    path = tmp_path / "run.yaml"
    path.write_text(f"seed: {text}\nname: {text}\n")
    assert validate(Outer, read_yaml(path), "run.yaml") == Outer(seed=seed, name=name)


@pytest.mark.parametrize("text", ["12:30", "12:30:01.5", "2026-01-02", "1e3", "09"])
def test_times_and_dates_are_text(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(f"name: {text}\n")
    assert validate(Outer, read_yaml(path), "run.yaml") == Outer(name=text)
    assert parse_overrides(["--name", text]) == {"name": text}


def test_a_number_with_an_exponent_is_a_number():
    values = {"graph": parse_overrides(["--sparsity", "1e-3"])}
    assert validate(Outer, values, "x").graph.sparsity == 1e-3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("seed: 1\nseed: 2\n", "at line 2, column 1: field 'seed' is there twice"),
        ("graph:\n  kind: full\n  kind: learned\n", "field 'kind' is there twice"),
        ("a: &a [*a]", "an alias stands for what it is part of"),
        ("[" * 5000, "is nested too deeply"),
        ("a: !!int x", "a value that its tag doesn't fit"),
        ("a: !!timestamp 2026-13-45", "a value that its tag doesn't fit"),
        ("a: " + "1" * 5000, "a value that its tag doesn't fit"),
        ("a: 1\n---\nb: 2\n", "found another document"),
        ("a: \0", "special characters are not allowed"),
        ("# " + "x" * 1_000_000, "expected at most 1,000,000 bytes, got 1,000,002"),
    ],
)
def test_what_yaml_would_guess_or_choke_on_is_refused(tmp_path, content, expected):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert expected in str(error.value)
    assert len(str(error.value)) < 500


def test_aliases_and_merges_are_read_and_bombs_are_not(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("a: &a {x: 1}\nb: {<<: *a, x: 2}\nc: [*a, *a]\n")
    assert read_yaml(path) == {"a": {"x": 1}, "b": {"x": 2}, "c": [{"x": 1}, {"x": 1}]}
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="stands for more than 1,000,000 values"):
        read_yaml(path)


def test_many_mistakes_are_cut_short():
    text = message({f"field_{i}": i for i in range(600_000)})
    assert len(text.splitlines()) == 21
    assert text.endswith("config run.yaml: and 599,980 problems more")
    assert len(message({"seed": ["x"] * 100_000, "x" * 100_000: 1})) < 1000


def test_a_field_below_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"--graph\.kind: graph has a value already"):
        parse_overrides(["--graph", "3", "--graph.kind", "full"])


@pytest.mark.parametrize("name", [3, True, ["obd"], {"a": 1}, 1.5])
def test_a_method_that_is_no_text_is_named(name):
    with pytest.raises(ConfigError, match=r"run\.yaml: method: expected the name of a method"):
        registry.parse_config({"method": name}, "run.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read \(No such file"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_nearest_falls_back_to_the_list():
    assert nearest("zzz", ["beta", "alpha"]) == " (known: alpha, beta)"

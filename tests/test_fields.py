"""Help is true: what it shows parses, and what parses is in it, for every field of every config."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, PositiveInt
from rich.console import Console

from jaxmethods import cli, registry
from jaxmethods.config import merge, parse_overrides
from jaxmethods.envs import ENVIRONMENTS
from jaxmethods.field_help import flag, show_fields
from jaxmethods.fields import REQUIRED, example, fields, words
from jaxmethods.merging.checkpoints.static_merges import STATIC_MERGES
from jaxmethods.yaml_text import dump, load

SMALLEST: dict[str, dict[str, Any]] = {
    "commformer": {"environment": {"name": "predator_prey"}, "environment_steps": 1},
    "interpret": {"model": "a"},
    "interpret_digits": {},
    "interpret_grokking": {},
    "kid": {},
    "lsm": {},
    "lsm_recordings": {
        "data": {"train": "a"},
        "speech": {"path": "b"},
        "language": {"path": "c"},
    },
    "merge": {"base": "a", "experts": ["b"], "algorithm": "ties"},
    "merging": {"data": {"path": "a"}},
    "misconceptions": {},
    "novo": {"model": "a", "data": "b"},
    "obd": {"data": {"path": "a"}, "teacher": {"path": "b"}},
    "speech_probe": {"model": "a", "train": "b", "test": "c", "answerer": {}},
    "transcribe": {"model": "a", "audio": ["b"]},
    "vqcd": {"tasks": [{"name": "text", "path": "b"}]},
    "rsfm": {},
    "obd_tables": {"path": "a", "evaluation": {"environment": "pendulum"}},
}
"""Method -> the fields that it requires."""
TOGETHER: dict[str, dict[str, Any]] = {
    "commformer graph.edges": {"graph": {"kind": "fixed"}},
    "della density": {"epsilon": 0},
    "merging data.generate": {"data": {"path": None, "tasks": ["digits"]}},
    "kid fit.questions": {"fit": {"batch": 1}},
    "kid teacher.fit.questions": {"teacher": {"fit": {"batch": 1}}},
    "kid teacher.fit.steps": {"teacher": {"path": "a"}},
    "lsm connector.qformer.width": {"connector": {"qformer": {"heads": 1}}},
    "speech_probe answerer.connector.qformer.width": {
        "answerer": {"connector": {"qformer": {"heads": 1}}}
    },
    "lsm_recordings connector.qformer.width": {"connector": {"qformer": {"heads": 1}}},
    "misconceptions world.entities": {"selection": {"samples": 3}},
    "obd data.generate": {"data": {"path": None}},
    "vqcd planner.diffusion.steps": {"planner": {"diffusion": {"stride": 1}}},
    "vqcd planner.network.dim": {"planner": {"network": {"groups": 1}}},
    "vqcd planner.network.horizon": {
        "planner": {"network": {"multipliers": [1]}},
        "evaluation": {"replan_every": 1},
    },
    "obd teacher.learn": {"teacher": {"path": None}},
}
"""Fields that don't stand alone -> what their neighbors have to be."""
RULES = {
    "rules": [{"pattern": "x", "coefficient": 0.1}],
    "rules[].pattern": [{"pattern": "x", "coefficient": 0.1}],
    "rules[].coefficient": [{"pattern": "x", "coefficient": 0.7}],
    "rules[].over_depth": [{"pattern": "(x)", "over_depth": [0.1, 0.2]}],
    "tasks": [{"name": "a", "path": "b"}],
    "tasks[].name": [{"name": "a", "path": "b"}],
    "tasks[].path": [{"name": "a", "path": "b"}],
    "tasks[].generate": [{"name": "a", "generate": "mixed", "environment": {"name": "pendulum"}}],
    "tasks[].episodes": [{"name": "a", "path": "b", "episodes": 1}],
    "tasks[].data_seed": [{"name": "a", "path": "b", "data_seed": 3}],
    "tasks[].quality": [{"name": "a", "path": "b", "quality": "medium"}],
    "tasks[].low": [{"name": "a", "path": "b", "low": 0.0, "high": 1.0}],
    "tasks[].high": [{"name": "a", "path": "b", "low": 0.0, "high": 1.0}],
    "tasks[].environment": [{"name": "a", "path": "b", "environment": {"name": "arm"}}],
    "tasks[].environment.name": [{"name": "a", "path": "b", "environment": {"name": "arm"}}],
    "tasks[].target": [{"name": "a", "path": "b", "target": {"quantile": 0.5}}],
    "tasks[].target.quantile": [{"name": "a", "path": "b", "target": {"quantile": 0.5}}],
    "tasks[].target.value": [{"name": "a", "path": "b", "target": {"value": 0.5}}],
    "students[].begin": [{"objective": "sft"}, {"objective": "kid", "begin": "sft"}],
    "learners[].kind": [{"kind": "finetune"}],
    "learners[].name": [{"kind": "vqcd", "name": "wide"}],
}
"""Elements of a list, which are given as one."""
CONFIGS: list[tuple[str, dict[str, Any]]] = [(method, {}) for method in SMALLEST]
CONFIGS += [("commformer", {"environment": {"name": name}}) for name in ENVIRONMENTS]
EXPERTS = {name: ["b"] * (merge.experts or 2) for name, merge in STATIC_MERGES.items()}
CONFIGS += [("merge", {"algorithm": n, "experts": EXPERTS[n]}) for n in STATIC_MERGES]


def elements(path: str, value: Any) -> Any:
    """The value of a field of a list's elements as a list of one; others as they are."""
    _, listed, rest = path.partition("[].")
    if not listed:
        return value
    for name in reversed(rest.split(".")):
        value = {name: value}
    return [value]


def smallest(method: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return merge({"method": method, **SMALLEST[method]}, more)


def help_of(values: Mapping[str, Any]) -> str:
    """What `--help` prints."""
    printed = io.StringIO()
    model = registry.find(values["method"], "test").config
    show_fields(model, values, Console(file=printed, width=80))
    return printed.getvalue()


def paths_in(value: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all that is in nested mappings, sections included."""
    for name, below in value.items():
        yield f"{prefix}{name}"
        if isinstance(below, Mapping):
            yield from paths_in(below, f"{prefix}{name}.")


def at(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = value[name]
    return value


def holds(found: Any, given: Any) -> bool:
    """Whether what was parsed is what was given, with defaults beside it."""
    if isinstance(given, dict):
        return all(holds(found[name], value) for name, value in given.items())
    if isinstance(given, list):
        return len(found) == len(given) and all(map(holds, found, given))
    return found == given


def test_all_methods_are_walked():
    # Other modules of this process may have registered toys.
    entries = registry.METHODS.items()
    assert set(SMALLEST) == {name for name, e in entries if not e.module.startswith("tests.")}


@pytest.mark.parametrize(("method", "more"), CONFIGS, ids=[f"{m} {dump(v)}" for m, v in CONFIGS])
def test_what_help_shows_parses(method, more):
    """Its value and an example of its type, as the flag that help prints."""
    values = smallest(method, more)
    shown = help_of(values)
    for field in fields(registry.find(method, "test").config, values):
        assert f"\n  {flag(field)} " in shown
        name = values.get("algorithm", method)
        together = merge(values, TOGETHER.get(f"{name} {field.path}", {}))
        tried = [(together, RULES.get(field.path, elements(field.path, field.example)))]
        if field.value is not REQUIRED and "[]" not in field.path:
            tried.append((values, field.value))
        path = field.path.partition("[]")[0]
        for base, value in tried:
            text = dump(value)
            overrides = parse_overrides([f"--{path}", text])
            config = registry.parse_config(merge(base, overrides), "test")
            assert holds(at(config.model_dump(mode="json"), path), load(text))


@pytest.mark.parametrize(("method", "more"), CONFIGS, ids=[f"{m} {dump(v)}" for m, v in CONFIGS])
def test_what_parses_is_in_help(method, more):
    """Every field of the parsed config, with sections that are left out filled in."""
    values = smallest(method, more)
    shown = help_of(values)
    config = registry.parse_config(values, "test").model_dump()
    optional = {"commformer": {"network": {"gate": {}}}, "obd": {"comparison": {}}}
    optional["kid"] = {"lora": {}, "teacher": {"lora": {}}}
    filled = registry.parse_config(merge(values, optional.get(method, {})), "test").model_dump()
    for path in {*paths_in(config), *paths_in(filled)}:
        if method == "merge" and at(filled, path) in (None, ()):
            continue  # maybe a parameter that the algorithm doesn't have
        assert f"\n  --{path} " in shown


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_arguments_of_an_environment_are_fields(name):
    """All that YAML can say: what remains are objects."""
    shown = help_of(smallest("commformer", {"environment": {"name": name}}))
    arguments = {*inspect.signature(ENVIRONMENTS[name]).parameters, "preset"}
    listed = {argument for argument in arguments if f"  --environment.{argument} = " in shown}
    assert arguments - listed <= {"viewer", "generator"}


def test_sections_that_are_optional_have_fields_and_no_subcommands():
    shown = help_of(smallest("commformer", {}))
    assert "--network.gate = null  a mapping of its fields, or null" in shown
    assert "--network.gate.penalty = 0.001  a number >= 0" in shown
    for form in ("no-self-edges", "no_self_edges", "{", "network.gate:None"):
        assert form not in shown.partition("Behind =")[2]


def test_help_shows_the_values_of_the_run_beside_the_defaults(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("method: misconceptions\nlearner: {steps: 7}\n")
    assert cli.main(["run", str(file), "--help", "--world.values", "9"]) == 0
    shown = capsys.readouterr().out
    assert "--learner.steps = 7 (default 1250)  an integer >= 1" in shown
    assert "--world.values = 9 (default 12)  an integer >= 4" in shown
    assert f"jaxmethods run {file} [--out DIR]" in shown
    assert cli.main(["methods", "misconceptions"]) == 0
    assert "--learner.steps = 1250  an integer >= 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "expected", "smallest"),
    [
        (int, "an integer", 1),
        (PositiveInt, "an integer >= 1", 1),
        (Annotated[int, Field(gt=2, lt=9)], "an integer from 3 to 8", 3),
        (Annotated[float, Field(gt=0, le=1)], "a number > 0 and <= 1", 0.5),
        (Annotated[float, Field(ge=0, le=1)] | None, "a number from 0 to 1, or null", 0),
        (PositiveInt | Literal[-1], "an integer >= 1 or -1", 1),
        (Literal["a", "b"] | None, "one of a, b, or null", "a"),
        (tuple[int, int], "a list of 2: an integer, an integer", [1, 1]),
        (Annotated[tuple[Path, ...], Field(min_length=2)], "a list of at least 2, each a path", 2),
        (bool, "true or false", True),
        (str, "text", "text"),
    ],
)
def test_types_have_words_and_examples(kind, expected, smallest):
    assert words(kind) == expected
    found = example(kind)
    assert (len(found) if isinstance(found, list) and smallest == 2 else found) == smallest

"""The table of static merges: what config, help, card and docs say follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxmethods import cli, merging
from jaxmethods.merging.checkpoints.static_merges import PARAMETERS, STATIC_MERGES, as_markdown
from jaxmethods.merging.config import MergeConfig

ROOT = Path(__file__).parents[3]


def config(algorithm, **given):
    experts = ["one"] if STATIC_MERGES[algorithm].experts == 1 else ["one", "two"]
    return MergeConfig.model_validate(
        {"base": "base", "experts": experts, "algorithm": algorithm} | given
    )


def test_the_page_of_the_docs_is_the_table():
    page = ROOT / "docs" / "methods" / "static_merges.md"
    assert page.read_text() == as_markdown(), "write it anew with static_merges.as_markdown()"


@pytest.mark.parametrize("name", STATIC_MERGES)
def test_defaults_of_the_table_are_values_that_the_config_takes(name):
    merge = STATIC_MERGES[name]
    defaults = {k: v for k, v in merge.parameters.items() if v is not None}
    assert config(name, **defaults).settings == config(name).settings
    assert config(name).settings == dict(merge.parameters) | ({"seed": 0} if merge.random else {})


@pytest.mark.parametrize("name", STATIC_MERGES)
def test_every_merge_can_be_called_on_trees_and_on_parts(name):
    merge = STATIC_MERGES[name]
    assert merge.function.__name__ in merging.__all__
    assert getattr(merging, merge.function.__name__) is merge.function
    if merge.needs == "experts":
        assert merge.in_passes is not None
    if merge.needs != "experts" or "scope" in merge.parameters:
        assert merge.one_part is not None


def test_every_parameter_of_the_config_is_of_some_merge():
    others = {"base", "experts", "algorithm", "rules", "exclude", "seed", "card"}
    assert MergeConfig.model_fields.keys() - others == PARAMETERS


def test_help_names_every_algorithm_with_its_defaults(capsys):
    file = ROOT / "configs" / "merging" / "merge_ties.yaml"
    assert cli.main(["run", str(file), "--help"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    for name, merge in STATIC_MERGES.items():
        assert f"{name}({merge.title}:".replace(" ", "") in shown
    assert "density0.2" in shown

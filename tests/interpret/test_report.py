"""The report: every row has a number and an error, and other parameters compile nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.interpret import report
from jaxmethods.interpret.losses import squared_error
from jaxmethods.interpret.problem import make_problem
from tests.interpret.networks import classification


def test_rows_are_chosen_by_what_the_problem_is():
    own = classification(0)
    assert set(report.measures_of(own)) == set(report.MEASURES)
    regression = make_problem(
        own.apply, squared_error, own.params, (own.data.inputs, jnp.zeros((24, 3)))
    )
    names = set(report.measures_of(regression))
    assert "trace" in names
    assert "calibration" not in names
    for message, name, level in (("name: expected", "tr", "quick"), ("level:", "trace", "fast")):
        with pytest.raises(ValueError, match=message):
            report.measure_row(name, own, own, jax.random.key(0), level)


def test_one_row_and_its_texts():
    own, other = classification(0), classification(1)
    held = replace(own, data=other.data)
    row = report.measure_row("gap", own, held, jax.random.key(0), "quick")
    assert row.error > 0
    rows = {"gap": row, "noise": row._replace(value=float("nan"))}
    text = report.to_markdown(rows)
    assert "held-out loss minus training loss" in text
    assert "too noisy to tell" in text
    plain = json.loads(json.dumps(report.to_json(rows), allow_nan=False))
    assert plain["noise"]["value"] is None
    np.testing.assert_allclose(plain["gap"]["value"], row.value)


@pytest.mark.slow
def test_a_quick_report_has_all_numbers_and_compiles_once(caplog):
    own, other = classification(0), classification(1)
    held = replace(own, data=other.data)
    rows = report.report(own, held, jax.random.key(0), "quick")
    values = {name: row.value for name, row in rows.items() if name != "noise_scale"}
    assert np.all(np.isfinite(list(values.values()))), values
    hidden = [name for name, row in rows.items() if np.isnan(row.error)]
    assert hidden == []
    scaled = [replace(p, params=jax.tree.map(lambda x: 0.9 * x, own.params)) for p in (own, held)]
    with jax.log_compiles(), caplog.at_level("WARNING"):
        report.report(*scaled, jax.random.key(1), "quick")
    assert [line for line in caplog.messages if line.startswith("Compiling")] == []

"""The report: every row has a number and an error, and other parameters compile nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.interpret import measures, programs, report
from jaxmethods.interpret.curvature import operators
from jaxmethods.interpret.losses import cross_entropy, squared_error
from jaxmethods.interpret.problem import Data, make_problem, mean_loss
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


def scaled(params, x):
    return params * x


def test_examples_without_a_target_are_in_no_mean():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 5)), jnp.float32)
    targets = jnp.arange(12).reshape(4, 3) % 5
    padded = targets.at[2:].set(-100).at[0, 1].set(-100)
    some = make_problem(scaled, cross_entropy, jnp.float32(1.5), (x[:2], padded[:2]))
    batches = Data(x.reshape(2, 2, 3, 5), padded.reshape(2, 2, 3))
    for whole in (
        make_problem(scaled, cross_entropy, jnp.float32(1.5), (x, padded)),
        make_problem(scaled, cross_entropy, jnp.float32(1.5), batches, microbatched=True),
    ):
        np.testing.assert_allclose(mean_loss(whole), mean_loss(some), rtol=1e-6)
        product = operators.ggn(whole)(jnp.float32(1))
        np.testing.assert_allclose(product, operators.ggn(some)(jnp.float32(1)), rtol=1e-5)


def in_half_precision(params, x):
    return (params * x).astype(jnp.bfloat16)


def test_losses_of_half_precision_add_up():
    x = jnp.zeros((1000, 2, 3))
    data = Data(x, jnp.zeros((1000, 2), jnp.int32))
    problem = make_problem(in_half_precision, cross_entropy, jnp.float32(1), data, True)
    np.testing.assert_allclose(mean_loss(problem), np.log(3), rtol=1e-5)


def test_padding_is_no_member_and_in_no_kernel_and_nan_no_right_answer():
    x, targets = jnp.eye(4), jnp.array([0, 1, 0, 0])
    padded = make_problem(
        scaled, cross_entropy, jnp.float32(1), Data(x, targets, jnp.array([1, 1, 0, 0]))
    )
    held = make_problem(scaled, cross_entropy, jnp.float32(1), (x[:2], targets[:2]))
    key = jax.random.key(0)
    assert (
        measures.MEASURES["membership"].compute(padded, held, key, measures.LEVELS["quick"]).value
        == 0.5
    )
    for name in ("kernel_rank", "gradient_rank", "alignment"):
        own, alone = (
            measures.MEASURES[name].compute(one, held, key, measures.LEVELS["quick"]).value
            for one in (padded, held)
        )
        np.testing.assert_allclose(own, alone, rtol=1e-5, err_msg=name)
    broken = make_problem(scaled, cross_entropy, jnp.float32(jnp.nan), (x, jnp.zeros(4, jnp.int32)))
    assert not programs.predicted(broken).right.any()

"""The monitor of training recipes: what is trained is the same, and it costs nothing when off."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.config import TrainingRunConfig
from jaxmethods.interpret.dynamics.watching import watched
from jaxmethods.interpret.recipes.watched import watched_recipe
from jaxmethods.layout import Layout, Rule
from jaxmethods.method import Method, Objective
from jaxmethods.stages import Evaluation, Recipe, Train

CURVATURE = jnp.array([4.0, 1.0])
RATE, NOISE = 0.1, 0.3


def loss(params, key):
    """|params + noise|^2 by curvature: H is known, and so is the noise of the gradient."""
    noise = NOISE * jax.random.normal(key, params.shape)
    return jnp.sum(CURVATURE * params**2) / 2 + jnp.sum(noise * params)


def init(key, batch):
    return {"key": key, "weights": jnp.array([3.0, 5.0])}


def step(state, batch):
    key, own = jax.random.split(state["key"])
    value, slope = jax.value_and_grad(loss)(state["weights"], own)
    return {"key": key, "weights": state["weights"] - RATE * slope}, {"loss": value}


METHOD = Method(init, step, lambda state, batch: Objective(state["weights"], loss))


def train(method, seeds, steps=60):
    def body(state, _):
        return jax.vmap(method.step, (0, None))(state, None)

    state = jax.vmap(method.init, (0, None))(jax.random.split(jax.random.key(0), seeds), None)
    return jax.jit(lambda state: jax.lax.scan(body, state, None, length=steps))(state)


@pytest.fixture(scope="module")
def both():
    return train(METHOD, 2), train(watched(METHOD, 5), 2)


def test_training_is_the_same_bit_for_bit(both):
    (plain, _), (state, _) = both
    np.testing.assert_array_equal(plain["weights"], state.own["weights"])
    np.testing.assert_array_equal(
        jax.random.key_data(plain["key"]), jax.random.key_data(state.own["key"])
    )


def test_rows_follow_curvature_noise_and_distance(both):
    _, (_, metrics) = both
    rows = {name.removeprefix("monitor_"): value for name, value in metrics.items()}
    changes = np.flatnonzero(np.diff(rows["weight_norm"][:, 0])) + 1
    np.testing.assert_array_equal(changes, np.arange(5, 60, 5))
    np.testing.assert_allclose(rows["sharpness"][-1], 4, rtol=1e-3)
    assert np.all(rows["sharpness_residual"][-1] < 0.1)
    # tr(Sigma) of two entries of variance NOISE^2, in the mean over rows of both seeds.
    assert 0.3 < np.mean(rows["gradient_noise"][20:]) / (2 * NOISE**2) < 2
    assert np.all(rows["distance"][-1] > 4)
    assert np.all(rows["lost_rows"] == 0)


def test_a_row_that_is_not_finite_is_counted_and_not_shown():
    def broken(params, key):
        return jnp.sum(jnp.log(params - 10))

    method = METHOD._replace(objective=lambda state, batch: Objective(state["weights"], broken))
    state, metrics = train(watched(method, 1), 1, 3)
    assert state.watch.row.lost_rows == 3
    assert np.all(np.isfinite(metrics["monitor_sharpness"]))


def test_a_watched_recipe_hands_on_what_the_method_has():
    def measure(state, batch, key):
        return {"norm": jnp.linalg.norm(state["weights"])}

    rules = (Rule(r"^(weights|moments)$", ("data",)), Rule(r"[^/]kernel$", ("fsdp",)))
    stage = Train(
        "learn", METHOD, 3, evaluation=Evaluation(measure), layout=Layout(rules), main=True
    )
    (found,) = watched_recipe(Recipe([stage]), 5).stages
    assert found.method is watched(METHOD, 5)
    state = found.method.init(jax.random.key(0), None)
    assert set(found.result(state, None)) == {"key", "weights"}
    assert found.evaluation.measure(state, None, None)["norm"] > 5
    assert [r.pattern for r in found.layout.state] == [
        r"^own/(weights|moments)$",
        r"[^/]kernel$",
    ]
    silent = stage._replace(method=METHOD._replace(objective=None))
    with pytest.raises(ValueError, match=r"doesn't say what it goes down on \(stage learn\)"):
        watched_recipe(Recipe([silent]), 5)


def test_the_monitor_is_off_unless_asked_for():
    assert TrainingRunConfig(method="x").monitor == 0
    with pytest.raises(ValueError, match="monitor"):
        TrainingRunConfig(method="x", monitor=-1)

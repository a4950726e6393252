"""Tuning: what trains, which mean, equal beginnings, rows that are never drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.lsm.config import TuneConfig
from jaxmethods.lsm.method import Data, draw_rows, first_labels, language_model_of, tuner
from jaxmethods.lsm.model import IGNORED
from tests.lsm import small

CLIPS, ROWS = 3, 6


def data(weights=None, key=None):
    return Data(
        small.frames(CLIPS),
        jnp.asarray([60, 31, 7]),
        small.text(ROWS),
        jnp.arange(ROWS) % CLIPS,
        jnp.ones(ROWS) if weights is None else jnp.asarray(weights),
        small.params()["language_model"],
        key,
    )


def method(optimizer=None, **settings):
    values = {"batch": 4, "warmup": 0} | settings
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    return tuner(small.model(), optimizer, TuneConfig(**values), small.INPUTS)


def after(steps=1, **settings):
    own = method(**settings)
    given = data()
    state = own.init(jax.random.key(5), given)
    step = jax.jit(own.step)
    for _ in range(steps):
        state, metrics = step(state, given)
    return state, metrics


@pytest.mark.slow
def test_the_loss_falls():
    own = method(optax.adam(3e-2))
    given = data()
    state = own.init(jax.random.key(5), given)

    @jax.jit
    def steps(state):
        return jax.lax.scan(lambda s, _: own.step(s, given), state, None, length=40)

    _, metrics = steps(state)
    assert metrics["loss"][-5:].mean() < 0.7 * metrics["loss"][:5].mean()


@pytest.mark.slow
def test_the_mean_over_tokens_does_not_depend_on_micro_batches():
    whole, _ = after()
    parts, _ = after(micro_batches=4)
    same = jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=2e-5), whole.trained, parts.trained)
    assert jax.tree.all(same)


@pytest.mark.slow
def test_the_published_mean_weighs_rows_not_tokens():
    tokens, one = after(micro_batches=4)
    means, other = after(micro_batches=4, loss_average="micro")
    assert float(one["loss"]) != pytest.approx(float(other["loss"]), rel=1e-4)
    same = jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=2e-5), tokens.trained, means.trained)
    assert not jax.tree.all(same)


@pytest.mark.slow
def test_the_encoder_has_no_place_in_the_state():
    state, _ = after()
    width = small.FRAMES * small.INPUTS
    assert set(state.trained) == {"connector", "language_model"}
    assert all(leaf.size < width for leaf in jax.tree.leaves(state.optimizer))
    gradient = jax.make_jaxpr(method().step)(state, data())
    assert "conv_general_dilated" not in str(gradient)


@pytest.mark.slow
@pytest.mark.parametrize("trains", ["connector", "lora"])
def test_what_does_not_train_is_not_in_the_state(trains):
    state, _ = after(trains=trains)
    assert "language_model" not in state.trained
    own = language_model_of(
        state.trained, small.params()["language_model"], TuneConfig(trains=trains, warmup=0)
    )
    kernel = own["layers"]["mlp"]["up"]["kernel"]
    expected = small.params()["language_model"]["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel, expected)


@pytest.mark.slow
def test_additions_that_are_switched_off_leave_the_language_model():
    state, _ = after(steps=3, trains="lora")
    base = small.params()["language_model"]
    own = language_model_of(
        state.trained, base, TuneConfig(trains="lora", lora_scale=0.0, warmup=0)
    )
    assert jnp.all(own["layers"]["attention"]["query"]["lora_b"] == 0)
    full = language_model_of(state.trained, base, TuneConfig(trains="lora", warmup=0))
    assert jnp.any(full["layers"]["attention"]["query"]["lora_b"] != 0)


def test_two_tuners_with_one_key_begin_alike():
    first, second = (
        method(**settings).init(jax.random.key(seed), data(key=jax.random.key(9)))
        for seed, settings in ((0, {}), (1, {"loss_average": "micro"}))
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, first.trained, second.trained))


def test_rows_of_no_weight_are_never_drawn():
    weights = jnp.asarray([0.0, 1.0, 0.0, 3.0, 0.0])
    found = np.asarray(draw_rows(jax.random.key(0), weights, 4000))
    counts = np.bincount(found, minlength=5)
    assert counts[[0, 2, 4]].sum() == 0
    assert counts[3] / counts[1] == pytest.approx(3, rel=0.15)


def test_tokens_are_counted():
    state, metrics = after(steps=2)
    assert 0 < float(metrics["tokens"]) <= float(state.tokens)


def test_moments_are_twice_what_trains():
    own = method(optax.adamw(1e-3), trains="connector")
    state = jax.eval_shape(own.init, jax.random.key(5), data())
    size = [
        sum(leaf.size for leaf in jax.tree.leaves(one)) for one in (state.optimizer, state.trained)
    ]
    assert size[0] == pytest.approx(2 * size[1], rel=0.01)


def test_one_program_serves_50_batches_of_mixed_lengths():
    own, given = method(), data()
    count = 0

    @jax.jit
    def step(state, given):
        nonlocal count
        count += 1
        return own.step(state, given)

    state = own.init(jax.random.key(5), given)
    for lengths in np.random.default_rng(0).integers(1, 61, (50, CLIPS)):
        state, _ = step(state, given._replace(lengths=jnp.asarray(lengths)))
    assert count == 1


def test_packed_rows_are_learned_from_as_they_are_alone():
    (alone, plain), (packed, metrics) = after(), after(together=2, room=160)
    assert metrics["lost"] == 0
    assert metrics["loss"] == pytest.approx(float(plain["loss"]), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), alone.trained, packed.trained
    )


def test_settings_of_packing_must_fit():
    with pytest.raises(ValueError, match="together: expected a divisor of a part's 4 rows, got 3"):
        method(together=3, room=9)
    with pytest.raises(ValueError, match="room: expected a number"):
        method(together=2)


def test_every_step_learns_from_as_many_tokens_as_it_is_allowed():
    state, metrics = after(steps=2, tokens=5)
    assert float(metrics["tokens"]) == 5
    assert float(state.tokens) == 10


def test_labels_behind_the_allowed_ones_are_left_out():
    labels = jnp.asarray([[[IGNORED, 3, 4]], [[5, IGNORED, 6]]])
    expected = [[[IGNORED, 3, 4]], [[5, IGNORED, IGNORED]]]
    assert first_labels(labels, 3).tolist() == expected
    assert first_labels(labels, 9).tolist() == labels.tolist()
    assert first_labels(labels.at[1, 0, 1].set(-1), 3)[1, 0].tolist() == [5, -1, IGNORED]

"""The step: epochs, what it refuses, and that training goes down."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.kid.method import Data, distiller, draw_batch
from jaxmethods.kid.model import of_decoder
from jaxmethods.models import decoder
from tests.kid import small
from tests.kid.small import MODEL, STUDENT, TEACHER_PARAMS, config, make_batch

KEY = jax.random.key(0)


def method_of(settings, rows=4, **models):
    own = {"student": STUDENT, "teacher": MODEL} | models
    init = lambda key: decoder.init_params(key, small.CONFIG)  # noqa: E731
    return distiller(*own.values(), optax.adam(0.02), settings, rows=rows, init=init)


@pytest.mark.slow
def test_training_goes_down_for_several_seeds_in_one_program():
    """`vmap` over seeds; 30 steps in one loop on the device."""
    method = method_of(config(share_prefix=False))
    data = Data(make_batch(), TEACHER_PARAMS)

    def train(key):
        def step(state, _):
            return method.step(state, data)

        return jax.lax.scan(step, method.init(key, data), length=30)

    state, metrics = jax.jit(jax.vmap(train))(jax.random.split(KEY, 2))
    assert (state.step == 30).all()
    assert (metrics["loss"][:, -1] < 0.7 * metrics["loss"][:, 0]).all()
    assert ((metrics["fill_accuracy"] >= 0) & (metrics["fill_accuracy"] <= 1)).all()
    np.testing.assert_allclose(metrics["filled"], 6 / 13, rtol=1e-6)
    assert (metrics["loss"][0] != metrics["loss"][1]).all()


def test_a_step_never_asks_the_host():
    method = method_of(config(micro_batches=2))
    data = Data(make_batch(), TEACHER_PARAMS)
    state = jax.eval_shape(method.init, KEY, data)
    program = str(jax.make_jaxpr(method.step)(state, data))
    assert "scan" in program
    assert "callback" not in program


def test_an_epoch_sees_every_row_once():
    rows = jax.tree.map(lambda leaf: jnp.arange(10), make_batch())
    seen = [draw_batch(KEY, jnp.int32(step), rows, 3).prompts for step in range(6)]
    for epoch in (seen[:3], seen[3:]):
        assert len(np.unique(np.concatenate(epoch))) == 9
    assert (np.concatenate(seen[:3]) != np.concatenate(seen[3:])).any()
    with pytest.raises(ValueError, match="10 examples there are, got 11"):
        draw_batch(KEY, jnp.int32(0), rows, 11)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"23 \(student\) and 27 \(teacher\)"):
        method_of(config(), teacher=of_decoder(small.TEACHER))
    with pytest.raises(ValueError, match="teacher: is needed"):
        method_of(config(), teacher=None)
    with pytest.raises(ValueError, match="multiple of 3 micro-batches, got 4"):
        method_of(config(micro_batches=3))
    with pytest.raises(ValueError, match="expected 1 with the divergence 'atkd'"):
        method_of(config("atkd", micro_batches=2))
    with pytest.raises(ValueError, match="at most the model's 23 tokens, got 24"):
        of_decoder(small.CONFIG, vocabulary=24)

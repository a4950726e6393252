"""What the outer loss compares students with, row by row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.obd import method, objectives
from jaxmethods.offline_rl.policies import q_value
from jaxmethods.offline_rl.types import Norm, teacher_states
from tests.obd import small

NORM = Norm(jnp.full(small.S, 0.5), jnp.full(small.S, 2.0))
BETA = 0.3


def drawn(objective, density=False, **options):
    """An outer batch of a teacher with a normalization of its own, and what it sees."""
    source = small.source()._replace(teacher=small.teacher(NORM))
    if density:
        data = source.data._replace(density_weights=1 + jnp.square(source.data.states[:, 0]))
        source = source._replace(data=data)
    config = small.CONFIG.model_copy(update={"objective": objective, **options})
    batch = objectives.make_outer_batch(jax.random.key(0), source, config, BETA)
    return batch, source, teacher_states(source.teacher, source.norm, batch.states)


def test_avpbc_weighs_the_teachers_actions_by_their_own_value():
    batch, source, seen = drawn("avpbc")
    q = q_value(source.teacher.q1, seen, batch.targets)
    np.testing.assert_allclose(batch.weights, BETA * q, rtol=1e-5)


def test_the_scaled_objective_gives_every_row_the_mean_weight():
    batch, source, seen = drawn("pbc_scaled")
    q = q_value(source.teacher.q1, seen, batch.targets)
    np.testing.assert_allclose(batch.weights, np.full(small.B, BETA * q.mean()), rtol=1e-5)


def test_weights_are_clipped_before_they_are_normalized():
    batch, source, seen = drawn("avpbc", weight_clip_min=0.01, weight_norm="mean")
    q = q_value(source.teacher.q1, seen, batch.targets)
    clipped = np.maximum(BETA * q, 0.01)
    np.testing.assert_allclose(batch.weights, clipped / clipped.mean(), rtol=1e-5)


@pytest.mark.parametrize("objective", ["dbc", "pbc"])
def test_rows_weigh_alike_or_by_their_density(objective):
    np.testing.assert_array_equal(drawn(objective)[0].weights, np.ones(small.B))
    batch = drawn(objective, density=True)[0]
    np.testing.assert_allclose(batch.weights, 1 + batch.states[:, 0] ** 2, rtol=1e-6)


def test_unused_pairs_do_not_dilute_the_cloning_loss():
    """The first two of six pairs: the mean over two."""
    noise = small.noise()[0]
    pair = small.syn()
    first = type(pair)(pair.states[:2], pair.actions[:2])
    found = objectives.bc_loss(small.student(), pair, noise, size=2)
    np.testing.assert_allclose(
        found, objectives.bc_loss(small.student(), first, noise[:2]), rtol=1e-5
    )
    whole, more = (objectives.bc_loss(small.student(), pair, noise, size=n) for n in (None, 100))
    np.testing.assert_allclose(more, whole, rtol=1e-5)


@pytest.mark.slow
def test_every_one_of_several_students_has_outer_noise_of_its_own():
    """So what they find doesn't depend on the noise of the batch; one student takes that."""
    source, batch = small.source(), small.batch()
    for number in (1, 2):
        config = small.CONFIG.model_copy(update={"n_inits": number, "inner_steps": 1})
        student = method.make_student(config.student)
        state = method.init_state(config, jax.random.key(0), source)

        @jax.jit
        def loss(noise, config=config, student=student, state=state):
            given = batch._replace(noise=noise)
            found = method.average_gradient(
                config, student, state, source, given, jax.random.key(1)
            )
            return found.loss

        changed = loss(batch.noise) != loss(-batch.noise)
        assert changed == (number == 1)

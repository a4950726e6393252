"""Students: many at once are the same as one by one, and every optimizer is really used."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.obd import students
from jaxmethods.obd.objectives import bc_loss
from jaxmethods.obd.students import (
    OPTIMIZERS,
    cross_optimizers,
    ensemble_mode,
    offline_loss,
    selected,
    train_student,
    train_students,
)
from jaxmethods.obd.types import SynSet
from jaxmethods.offline_rl.policies import Policy, tanh_gaussian
from jaxmethods.offline_rl.types import OfflineData
from tests.programs import quick

POLICY = tanh_gaussian(hidden=8)


def random_set(seed: int = 0, rows: int = 6) -> SynSet:
    states_key, actions_key = jax.random.split(jax.random.key(seed))
    states = jax.random.normal(states_key, (rows, 3))
    return SynSet(states, jax.random.uniform(actions_key, (rows, 2), minval=-1.0))


def assert_close(left, right, rtol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), left, right)


def test_students_trained_together_are_those_trained_alone():
    key, syn = jax.random.key(1), random_set()
    together = train_students(key, syn, POLICY, 3, steps=5)
    for index, own in enumerate(jax.random.split(key, 3)):
        alone = train_student(own, syn, POLICY, optax.sgd(0.1), 5)
        assert_close(jax.tree.map(lambda leaf, k=index: leaf[k], together), alone)


def test_a_student_takes_the_steps_that_its_noise_and_gradients_say():
    key, syn = jax.random.key(2), random_set()
    init_key, noise_key = jax.random.split(key)
    params = POLICY.init(init_key, 3, 2)
    for step_key in jax.random.split(noise_key, 3):
        noise = jax.random.normal(step_key, (6, 2))
        gradient = jax.grad(bc_loss)(params, syn, noise, POLICY.sample)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    assert_close(train_student(key, syn, POLICY, optax.sgd(0.1), 3), params)


def test_without_noise_a_student_fits_the_set():
    syn = random_set()
    params = train_student(jax.random.key(0), syn, POLICY, optax.adam(1e-2), 400, noise=0.0)
    assert float(jnp.mean(jnp.square(POLICY.mode(params, syn.states) - syn.actions))) < 0.01


@pytest.fixture(scope="module")
def crossed():
    names = tuple(OPTIMIZERS)
    train = jax.jit(
        lambda key, syn: cross_optimizers(key, syn, tuple(OPTIMIZERS.values()), POLICY, 2, 8)
    )
    return dict(
        zip(
            names,
            (
                jax.tree.map(lambda leaf, i=i: leaf[i], train(jax.random.key(3), random_set()))
                for i in range(len(names))
            ),
            strict=True,
        )
    )


@pytest.mark.parametrize("name", quick(OPTIMIZERS, "adam"))
def test_a_column_of_the_cross_table_is_that_optimizer_alone(crossed, name):
    train = jax.jit(train_students, static_argnums=(2, 3, 4, 5))
    alone = train(jax.random.key(3), random_set(), POLICY, 2, OPTIMIZERS[name], 8)
    assert_close(crossed[name], alone)


def test_all_optimizers_of_the_cross_table_end_elsewhere(crossed):
    ends = [np.asarray(params.layers[0][0]) for params in crossed.values()]
    for index, one in enumerate(ends):
        for other in ends[index + 1 :]:
            assert np.abs(one - other).max() > 1e-5  # rounding is 1e-7


def test_momentum_accumulates_over_a_students_steps():
    """With a constant gradient g the second step of momentum 0.9 is 1.9 g."""
    optimizer = selected([optax.sgd(1.0), optax.sgd(1.0, momentum=0.9)], jnp.int32(1))
    params, gradient = jnp.zeros(2), jnp.ones(2)
    state = optimizer.init(params)
    _, state = optimizer.update(gradient, state, params)
    change, _ = optimizer.update(gradient, state, params)
    np.testing.assert_allclose(change, [-1.9, -1.9], rtol=1e-6)


def test_an_ensemble_of_equal_students_is_one_of_them():
    params = POLICY.init(jax.random.key(0), 3, 2)
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), params)
    states = random_set().states
    np.testing.assert_allclose(
        ensemble_mode(POLICY)(copies, states), POLICY.mode(params, states), atol=1e-6
    )


def test_the_ensembles_action_is_the_mean_of_its_members():
    params = train_students(jax.random.key(1), random_set(), POLICY, 3, steps=1)
    states = random_set(5).states
    members = [
        POLICY.mode(jax.tree.map(lambda leaf, k=k: leaf[k], params), states) for k in range(3)
    ]
    np.testing.assert_allclose(
        ensemble_mode(POLICY)(params, states), np.mean(members, 0), rtol=1e-5
    )


@pytest.mark.parametrize("chunk", [4, 7, 21, 100])
def test_the_offline_loss_counts_every_row_once_whatever_the_chunk(chunk):
    """With deterministic actions it is the plain mean squared error."""
    syn = random_set(rows=21)
    params = POLICY.init(jax.random.key(0), 3, 2)

    def sample(params, states, noise):
        return POLICY.mode(params, states)

    loss = offline_loss(jax.random.key(0), params, OfflineData(*syn), sample, chunk)
    expected = np.mean(np.square(POLICY.mode(params, syn.states) - syn.actions))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_noise_of_the_offline_loss_is_drawn_anew_for_every_chunk():
    """A student that acts out its noise has the loss 1 +- sqrt(2 / L) against actions of 0."""
    rows, keys = 400, jax.random.split(jax.random.key(0), 50)
    data = OfflineData(jnp.zeros((rows, 1)), jnp.zeros((rows, 1)))

    def sample(params, states, noise):
        return noise

    losses = jax.vmap(lambda key: students.offline_loss(key, None, data, sample, chunk=4))(keys)
    # The same noise for every chunk would leave the spread of four numbers, ten times as much.
    np.testing.assert_allclose(losses.std(), (2 / rows) ** 0.5, rtol=0.5)
    np.testing.assert_allclose(losses.mean(), 1.0, atol=4 * (2 / rows / 50) ** 0.5)


@pytest.mark.slow
def test_without_noise_every_student_step_is_that_of_the_mean_action():
    policy = Policy(
        init=lambda key, n_states, n_actions: jnp.zeros(n_actions),
        sample=lambda params, states, noise: params + noise,
        mode=lambda params, states: params,
    )
    syn = SynSet(jnp.zeros((1, 1)), jnp.array([[1.0, -2.0]]))
    trained = students.train_student(jax.random.key(0), syn, policy, optax.sgd(0.5), 3, noise=0.0)
    # The mean over two dimensions has the slope (a - target): the distance halves every time.
    np.testing.assert_allclose(trained, syn.actions[0] * (1 - 0.5**3), rtol=1e-6)

"""Acting: the present, the plan, the action, and when a plan is made anew."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import vqcd
from jaxmethods.vqcd import policy
from jaxmethods.vqcd.data.windows import normalize, unnormalize
from jaxmethods.vqcd.inverse_dynamics import inverse_dynamics
from jaxmethods.vqcd.spaces import alignment
from tests.vqcd.toy import ACTIONS, PERCEPTRON, STATES, changed, space

CONFIG = vqcd.PolicyConfig(planner=PERCEPTRON, states=STATES, actions=ACTIONS)
KEY = jax.random.key(7)
OBSERVATIONS = np.random.default_rng(4).normal(size=(3, 5)).astype(np.float32)
RUN = jax.jit(vqcd.act, static_argnums=0)


@cache
def planner():
    bank = jax.jit(vqcd.initial_bank, static_argnums=1)(jax.random.key(3), PERCEPTRON)
    return vqcd.task_weights(PERCEPTRON, bank, 1)


@cache
def task():
    return space(1)


def act(config=CONFIG, observations=OBSERVATIONS, memory=None, key=KEY, target=0.8, **changes):
    memory = vqcd.begin(config, len(observations)) if memory is None else memory
    return RUN(config, planner(), task()._replace(**changes), target, observations, memory, key)


def test_an_action_leads_from_the_present_to_the_next_planned_state():
    actions, memory = act()
    rows = normalize(task().states, OBSERVATIONS)
    present = alignment.encode(task().state_module, STATES, rows).z
    np.testing.assert_allclose(memory.plan[:, 0], present, rtol=1e-6)
    aligned = inverse_dynamics(planner().inverse, present, memory.plan[:, 1])
    decoded = alignment.decode(task().action_module, ACTIONS, aligned, 2)
    expected = jnp.clip(unnormalize(task().actions, decoded), -1, 1)
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(memory.plan).max() <= 1.0


def test_actions_are_clipped_after_they_are_scaled():
    scaled = vqcd.Statistics(jnp.array([0.9, -5.0]), jnp.array([1e-3, 1e-3]))
    actions, _ = act(actions=scaled)
    np.testing.assert_allclose(actions[:, 0], 0.9, atol=0.01)
    np.testing.assert_allclose(actions[:, 1], -1.0, atol=1e-6)


def test_the_target_is_asked_for():
    plans = [act(target=target)[1].plan for target in (0.0, 1.0)]
    assert (plans[0][:, 0] == plans[1][:, 0]).all()
    assert (plans[0][:, 1:] != plans[1][:, 1:]).any()


def test_every_episode_can_have_a_target_of_its_own():
    both = act(target=jnp.array([0.2, 0.2, 0.9]))[0]
    np.testing.assert_allclose(both[:2], act(target=0.2)[0][:2], rtol=1e-5)
    np.testing.assert_allclose(both[2:], act(target=0.9)[0][2:], rtol=1e-5)


def test_a_plan_serves_as_many_steps_as_it_should():
    config = changed(CONFIG, replan_every=3)
    memory, plans, ages = None, [], []
    for step in range(4):
        moved = OBSERVATIONS + 0.1 * step
        actions, memory = act(config, moved, memory, jax.random.key(step))
        plans.append(memory.plan)
        ages.append(int(memory.age))
        present = policy.align_states(config, task(), moved)
        aligned = inverse_dynamics(planner().inverse, present, memory.plan[:, memory.age + 1])
        expected = policy.decode_actions(config, task(), aligned)
        np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-6)
    assert ages == [0, 1, 2, 0]
    np.testing.assert_array_equal(plans[0], plans[2])
    assert (plans[3] != plans[0]).any()


def test_a_warm_start_stays_near_the_last_plan():
    warm = changed(CONFIG, warm_start=1)
    _, first = act(warm)
    np.testing.assert_array_equal(first.plan, act()[1].plan)  # nothing to start from
    _, again = act(warm, memory=first, key=jax.random.key(1))
    _, cold = act(memory=first, key=jax.random.key(1))
    moved = np.concatenate([first.plan[:, 1:], first.plan[:, -1:]], 1)

    def distance(memory):
        return np.abs(memory.plan - moved)[:, 1:].mean()

    assert distance(again) < 0.5 * distance(cold)
    np.testing.assert_array_equal(again.plan[:, 0], cold.plan[:, 0])


def test_actions_can_be_replaced_by_codes():
    config = changed(CONFIG, requantize_action=True)
    codes = task().action_module | {
        "codebook": jax.random.uniform(jax.random.key(2), (16, 2), minval=-1, maxval=1)
    }
    _, memory = act(config)
    aligned = inverse_dynamics(planner().inverse, memory.plan[:, 0], memory.plan[:, 1])
    found = policy.decode_actions(config, task()._replace(action_module=codes), aligned)
    snapped, _ = alignment.quantize(codes, ACTIONS, aligned.reshape(3, 2, 2))
    without = policy.decode_actions(
        CONFIG, task()._replace(action_module=codes), snapped.reshape(3, 4)
    )
    np.testing.assert_array_equal(found, without)


@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_what_is_no_number_has_no_code(kind):
    """Its nearest code would be an action like any other."""
    coded = changed(ACTIONS, kind=kind)
    config = changed(CONFIG, requantize_action=True, actions=coded)
    aligned = jnp.full((2, 4), 0.3).at[0, 1].set(jnp.nan)
    found = policy.decode_actions(config, task(), aligned)
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()


def test_acting_maps_over_seeds():
    keys = jax.random.split(KEY, 2)
    memory = vqcd.begin(CONFIG, 3)

    def run(key):
        return vqcd.act(CONFIG, planner(), task(), 0.8, OBSERVATIONS, memory, key)[0]

    both = jax.jit(jax.vmap(run))(keys)
    for seed, key in enumerate(keys):
        np.testing.assert_allclose(both[seed], act(key=key)[0], rtol=1e-4, atol=1e-5)


def test_plans_are_made_when_they_are_due_also_where_memories_are_mapped(monkeypatch):
    config, made, plan = changed(CONFIG, replan_every=2), [], policy.plan

    def counted(*arguments):
        jax.debug.callback(lambda: made.append(1))
        return plan(*arguments)

    monkeypatch.setattr(policy, "plan", counted)

    @jax.jit
    @jax.vmap
    def step(memory, key):
        return policy.act(config, planner(), task(), 0.8, OBSERVATIONS, memory, key)[1]

    memory = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), vqcd.begin(config, 3))
    for number in range(4):
        memory = step(memory, jax.random.split(jax.random.key(number), 2))
    jax.effects_barrier()
    assert memory.age.tolist() == [1, 1]
    assert len(made) == 2  # of four steps


def test_plans_decode_into_observations():
    _, memory = act()
    decoded = policy.decode_states(CONFIG, task(), memory.plan)
    assert decoded.shape == (3, 4, 5)
    alone = policy.decode_states(CONFIG, task(), memory.plan[:, 0])
    np.testing.assert_allclose(decoded[:, 0], alone, rtol=1e-5, atol=1e-6)


def test_observations_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"observations: expected \[E, 5\], got \[3, 4\]"):
        act(observations=jnp.ones((3, 4)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"states": STATES.model_dump() | {"latents": 4}},
            "expected 8 for an aligned state, got 6",
        ),
        ({"actions": ACTIONS.model_dump() | {"latents": 4}}, "expected 8, the size of an aligned"),
        ({"replan_every": 4}, "below the horizon of 4, got 4"),
        ({"warm_start": 5}, "at most the 4 sampling steps, got 5"),
        (
            {"planner": {"network": {"kind": "mlp", "horizon": 1, "channels": 6}}},
            "network.horizon: expected at least 2 with behavior = 'inverse'",
        ),
    ],
)
def test_configs_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        changed(CONFIG, **fields)

"""Two tasks of different sizes, as small as can be: what many tests train on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods import vqcd
from jaxmethods.vqcd import AlignmentConfig, DiffusionConfig, PlannerConfig, TemporalNetworkConfig
from jaxmethods.vqcd.spaces import alignment
from tests.programs import weights

HORIZON, ROWS, TASKS = 4, 60, 3
SIZES = ((3, 1), (5, 2), (4, 2))
"""Observations and actions of each task."""
# Two channels a group: with one, biases before a norm have no gradient but rounding, which Adam
# makes as large as any.
NETWORK = TemporalNetworkConfig(
    channels=6, dim=8, multipliers=(1, 2), horizon=HORIZON, groups=4, hidden=16, layers=2
)
CONFIG = PlannerConfig(
    network=NETWORK,
    diffusion=DiffusionConfig(steps=20, stride=5),
    tasks=TASKS,
    action_channels=4,
    inverse_hidden=16,
    lr=1e-3,
    batch=8,
    ema_every=2,
    ema_start=3,
    ema_decay=0.9,
)
PERCEPTRON = CONFIG.model_copy(
    update={"network": NETWORK.model_copy(update={"kind": "mlp"})},
)
"""The same planner with the network that compiles in a moment."""
STATES = AlignmentConfig(
    latents=3, codes=16, encoder=(16,), decoder=(16,), batch=16, steps=20, rho=1.0
)
ACTIONS = STATES.model_copy(update={"latents": 2})


def changed(config, **fields):
    """The config with other fields, validated anew."""
    return type(config).model_validate(config.model_dump() | fields)


def rows(task, seed=0):
    """Normalized states [N, ds] and actions [N, da] of a task."""
    random = np.random.default_rng(100 * seed + task)
    return tuple(random.normal(size=(ROWS, size)).astype(np.float32) for size in SIZES[task])


def codes_data(task, seed=0, number=ROWS):
    """A task's windows as random codes of random tables."""
    random = np.random.default_rng(1000 * seed + task)

    def coded(latents):
        table = random.uniform(-1, 1, (16, 2)).astype(np.float32)
        return jnp.asarray(random.integers(0, 16, (number, latents)), jnp.int16), jnp.asarray(table)

    starts = np.arange(number - HORIZON + 1)
    return vqcd.task_data(coded(3), coded(2), starts, random.uniform(size=number), task)


def programs(config):
    """The planner's two functions, compiled once each for a config."""
    method = vqcd.planner(config)
    return jax.jit(method.init), jax.jit(method.step)


def train(config, compiled, bank, task, steps, data=None, **feed):
    """The bank after training on a task, and the metrics of every step."""
    init, step = compiled
    fed = vqcd.Feed(codes_data(task) if data is None else data, jnp.int32(task), bank, **feed)
    state, history = init(jax.random.key(0), fed), []
    for _ in range(steps):
        state, metrics = step(state, fed)
        history.append(metrics)
    return vqcd.finish(config, state), history


def space(task=0):
    """Statistics, untrained modules and bounds of a task."""
    states, actions = rows(task)
    return vqcd.TaskSpace(
        vqcd.statistics(states),
        vqcd.statistics(actions),
        *(
            jax.tree.map(jnp.asarray, weights(alignment.init, config, rows.shape[1], seed=task))
            for config, rows in ((STATES, states), (ACTIONS, actions))
        ),
        jnp.full(10, -1.0),
        jnp.full(10, 1.0),
    )


def equal(first, second):
    """Whether two trees are equal, bit for bit."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)

"""What a distilled set has to beat: real pairs chosen in simpler ways, and cloning all the data."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.method import Method, Metrics, Objective, gradient_step
from jaxmethods.numerics.sampling import distinct_rows
from jaxmethods.obd.config import CloningConfig
from jaxmethods.obd.objectives import bc_loss
from jaxmethods.obd.synthetic import best_of_clusters
from jaxmethods.obd.types import SynSet
from jaxmethods.offline_rl.policies import Policy, tanh_gaussian
from jaxmethods.offline_rl.types import OfflineData


class CloningState(NamedTuple):
    """A policy on its way through the data."""

    key: jax.Array
    params: Any
    optimizer: optax.OptState


def cloning(config: CloningConfig, policy: Policy | None = None) -> Method:
    """Behavioral cloning on `OfflineData`; a step is one minibatch drawn with replacement."""
    policy = tanh_gaussian() if policy is None else policy
    optimizer = getattr(optax, config.optimizer)(config.learning_rate)

    def init(key: jax.Array, data: OfflineData) -> CloningState:
        key, init_key = jax.random.split(key)
        params = policy.init(init_key, data.states.shape[-1], data.actions.shape[-1])
        return CloningState(key, params, optimizer.init(params))

    def drawn(keys: Any, data: OfflineData) -> tuple[SynSet, Any]:
        rows = jax.random.randint(keys[0], (config.batch,), 0, len(data.states))
        batch = SynSet(data.states[rows], data.actions[rows])
        return batch, config.noise * jax.random.normal(keys[1], batch.actions.shape)

    def step(state: CloningState, data: OfflineData) -> tuple[CloningState, Metrics]:
        key, row_key, noise_key = jax.random.split(state.key, 3)
        batch, noise = drawn((row_key, noise_key), data)
        loss, gradient = jax.value_and_grad(bc_loss)(state.params, batch, noise, policy.sample)
        params, moments = gradient_step(optimizer, gradient, state.optimizer, state.params)
        return CloningState(key, params, moments), {"loss": loss}

    def objective(state: CloningState, data: OfflineData) -> Objective:
        def loss(params: Any, key: jax.Array) -> jax.Array:
            batch, noise = drawn(jax.random.split(key), data)
            return bc_loss(params, batch, noise, policy.sample)

        return Objective(state.params, loss)

    return Method(init, step, objective)


def random_rows(key: jax.Array, data: OfflineData, count: int) -> SynSet:
    """`count` different rows, uniformly: the paper's baseline."""
    return _rows(data, distinct_rows(key, len(data.states), count))


def top_rows(
    key: jax.Array, data: OfflineData, score: jax.Array, count: int, share: float = 0.1
) -> SynSet:
    """`count` different rows, uniformly among the `share` of the data with the highest scores.

    Args:
        key: [] typed random key.
        data: L rows.
        score: [L], for instance the return of each row's episode or q(s, a).
        count: how many, static.
        share: in (0, 1], static. At least `count` rows are drawn from.

    Returns:
        `count` pairs.
    """
    score = jnp.where(jnp.isnan(score), -jnp.inf, score)  # top_k takes NaN for the largest
    best = jax.lax.top_k(score, max(count, round(share * len(score))))[1]
    return _rows(data, best[distinct_rows(key, len(best), count)])


def cluster_rows(key: jax.Array, data: OfflineData, count: int) -> SynSet:
    """One row of each of `count` k-means clusters of the states: a coreset that covers them.

    The row of a cluster is a random one, so that no cluster's typical action is preferred.
    """
    cluster_key, score_key = jax.random.split(key)
    score = jax.random.uniform(score_key, (len(data.states),))
    return _rows(data, best_of_clusters(cluster_key, data.states, score, count))


def _rows(data: OfflineData, rows: jax.Array) -> SynSet:
    return SynSet(data.states[rows], data.actions[rows])

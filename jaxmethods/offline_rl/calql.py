r"""Cal-QL, the offline RL that the paper's teachers and critics come from.

A soft actor-critic whose critics are pushed down at the policy's actions and up at the data's,
but not below what the data's episodes really returned:

    L_Q  = sum_i E[ (r + gamma min_j Qbar_j(s', a') - Q_i(s, a))^2 ]
           + alpha sum_i E[ log sum_a exp max(Q_i(s, a), G(s)) - Q_i(s, a_data) ]
    L_pi = E[ lambda log pi(a|s) - min_i Q_i(s, a) ]

G is the Monte-Carlo return of the data; it bounds the values at the policy's actions only, not at
the uniform ones, of the three kinds of actions in the soft maximum (policy's at s, at s', uniform).
Nakamoto et al., "Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online Fine-Tuning",
NeurIPS 2023, arXiv 2303.05479, eq. 5.1; details and constants are those of the CORL code.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.method import Method, Metrics, Objective
from jaxmethods.numerics.precision import wide
from jaxmethods.offline_rl.config import CalQLConfig
from jaxmethods.offline_rl.critics import (
    apply_each,
    bootstrapped,
    init_twins,
    moving_average,
    separate,
    squared_error,
    twin_values,
)
from jaxmethods.offline_rl.policies import (
    PolicyParams,
    QParams,
    init_policy,
    policy_heads,
    policy_log_prob,
    policy_sample,
)
from jaxmethods.offline_rl.transitions import Transitions, minibatch
from jaxmethods.offline_rl.types import Norm, Teacher


class Networks(NamedTuple):
    """What is trained, each with its own Adam."""

    policy: PolicyParams
    critics: QParams
    """Leaves [2, ...]."""
    log_temperature: jax.Array
    """[]: log lambda."""


class State(NamedTuple):
    """Cal-QL under way."""

    key: jax.Array
    networks: Networks
    target: QParams
    """Moving average of the critics."""
    optimizer: Networks
    """Adam's state for each of the networks."""
    norm: Norm
    step: jax.Array
    """[] int32"""


def learner(config: CalQLConfig) -> Method:
    """Cal-QL on `Transitions`; a step is one minibatch for all networks."""
    optimizers = _optimizers(config)

    def init(key: jax.Array, data: Transitions) -> State:
        return init_state(config, optimizers, key, data)

    def step(state: State, data: Transitions) -> tuple[State, Metrics]:
        return update(config, optimizers, state, data)

    def objective(state: State, data: Transitions) -> Objective:
        """The critics' loss."""

        def loss(critics: QParams, key: jax.Array) -> jax.Array:
            draw, own = jax.random.split(key)
            batch = minibatch(draw, data, config.batch)
            return critic_loss(config, own, critics, state.target, state.networks, batch)[0]

        return Objective(state.networks.critics, loss)

    return Method(init, step, objective)


def teacher(state: State) -> Teacher:
    """Policy and critics as a teacher."""
    q1, q2 = separate(state.networks.critics)
    return Teacher(state.networks.policy, q1, q2, state.norm)


def init_state(config: CalQLConfig, optimizers: Any, key: jax.Array, data: Transitions) -> State:
    """Fresh networks for the data's sizes.

    Args:
        config: sizes; static.
        optimizers: one for every network.
        key: [] typed random key.
        data: transitions, which say the sizes.

    Returns:
        Networks, their targets and optimizer states.
    """
    key, policy_key, critic_key = jax.random.split(key, 3)
    n_states, n_actions = data.states.shape[-1], data.actions.shape[-1]
    networks = Networks(
        policy=init_policy(policy_key, n_states, n_actions, config.hidden, config.n_layers),
        critics=init_twins(critic_key, n_states, n_actions, config.hidden),
        log_temperature=jnp.zeros(()),
    )
    moments = Networks(*(o.init(n) for o, n in zip(optimizers, networks, strict=True)))
    zero = jnp.zeros((), jnp.int32)
    return State(key, networks, networks.critics, moments, data.norm, zero)


def update(
    config: CalQLConfig, optimizers: Any, state: State, data: Transitions
) -> tuple[State, Metrics]:
    """One minibatch: the entropy's temperature, the policy and the critics, all from the same
    networks.

    Args:
        config: the losses; static.
        optimizers: one for every network.
        state: networks, targets, moments and key.
        data: all transitions, of which a minibatch is drawn.

    Returns:
        The state after it, and metrics [].
    """
    key, draw, policy_key, critic_key = jax.random.split(state.key, 4)
    batch = minibatch(draw, data, config.batch)
    networks = state.networks
    temperature_slope, policy_slope, metrics = _actor_gradients(config, policy_key, state, batch)

    def loss(critics: QParams) -> tuple[jax.Array, Metrics]:
        return critic_loss(config, critic_key, critics, state.target, networks, batch)

    critic_slope, critic_metrics = jax.grad(loss, has_aux=True)(networks.critics)
    gradients = Networks(policy_slope, critic_slope, temperature_slope)
    networks, moments = apply_each(optimizers, gradients, state.optimizer, networks)
    target = moving_average(state.target, networks.critics, config.target_rate)
    following = State(key, networks, target, moments, state.norm, state.step + 1)
    return following, metrics | critic_metrics


def _actor_gradients(
    config: CalQLConfig, key: jax.Array, state: State, batch: Transitions
) -> tuple[jax.Array, PolicyParams, Metrics]:
    """Gradients of the temperature's and the policy's losses."""
    networks = state.networks
    noise = jax.random.normal(key, batch.actions.shape)
    n_actions = batch.actions.shape[-1]
    wanted = -float(n_actions) if config.target_entropy is None else config.target_entropy

    def loss(policy: PolicyParams) -> tuple[jax.Array, jax.Array]:
        log_prob = policy_log_prob(policy, batch.states, noise)
        actions = policy_sample(policy, batch.states, noise)
        values = jnp.min(twin_values(networks.critics, batch.states, actions), axis=0)
        if config.cloning_steps:
            likelihood = squashed_log_prob(policy, batch.states, batch.actions)
            values = jnp.where(state.step < config.cloning_steps, likelihood, values)
        penalty = jnp.exp(networks.log_temperature) * log_prob
        return jnp.mean(penalty - values), log_prob

    (value, log_prob), slope = jax.value_and_grad(loss, has_aux=True)(networks.policy)
    # The loss is -log lambda (log pi + wanted entropy), linear in the parameter.
    temperature_slope = -jnp.mean(log_prob + wanted)
    metrics = {
        "policy_loss": value,
        "entropy": -log_prob.mean(),
        "temperature": jnp.exp(networks.log_temperature),
    }
    return temperature_slope, slope, metrics


def critic_loss(
    config: CalQLConfig,
    key: jax.Array,
    critics: QParams,
    target: QParams,
    networks: Networks,
    batch: Transitions,
) -> tuple[jax.Array, Metrics]:
    """Bellman error plus alpha times the calibrated conservative term (eq. 5.1).

    Args:
        config: the loss; static.
        key: [] typed random key of the actions.
        critics: what is differentiated; `networks` holds the policy and its temperature.
        target: the target critics.
        networks: policy and temperature, which are constants here.
        batch: rows [B].

    Returns:
        The loss [] float32, and metrics [].
    """
    next_key, actions_key = jax.random.split(key)
    policy = networks.policy
    noise = jax.random.normal(next_key, batch.actions.shape)
    next_actions = policy_sample(policy, batch.next_states, noise)
    following = jnp.min(twin_values(target, batch.next_states, next_actions), axis=0)
    if config.backup_entropy:
        log_prob = policy_log_prob(policy, batch.next_states, noise)
        following = following - jnp.exp(networks.log_temperature) * log_prob
    targets = bootstrapped(batch.rewards, batch.terminals, following, config.discount)
    values = twin_values(critics, batch.states, batch.actions)
    bellman = squared_error(values, targets)
    at_actions = values_at_actions(config, actions_key, critics, policy, batch)
    if not config.importance_sampling:
        at_actions = jnp.concatenate([at_actions, values[:, None]], axis=1)
    gap = conservative_gap(at_actions, values, config.temperature)
    metrics = {"bellman_error": bellman, "conservative_gap": gap.mean(), "q": values.mean()}
    return bellman + config.alpha * jnp.sum(gap), metrics


def values_at_actions(
    config: CalQLConfig, key: jax.Array, critics: QParams, policy: PolicyParams, batch: Transitions
) -> jax.Array:
    """Values at s of M uniform actions, M of the policy at s and M of it at s'.

    Those of the policy's actions are calibrated; with importance sampling the log-density each
    action was drawn with is subtracted.

    Args:
        config: M and switches; static.
        key: [] typed random key of the actions.
        critics: leaves [2, ...].
        policy: a tanh-Gaussian one.
        batch: B rows.

    Returns:
        [2, 3 M, B].
    """
    here_key, there_key, uniform_key = jax.random.split(key, 3)
    shape = (config.n_actions, *batch.actions.shape)
    uniform = jax.random.uniform(uniform_key, shape, minval=-1.0, maxval=1.0)
    actions = [uniform]
    densities = [jnp.full(shape[:-1], -shape[-1] * math.log(2.0))]
    for draw, states in ((here_key, batch.states), (there_key, batch.next_states)):
        noise = jax.random.normal(draw, shape)
        repeated = jnp.broadcast_to(states, (*shape[:2], states.shape[-1]))
        actions.append(policy_sample(policy, repeated, noise))
        densities.append(policy_log_prob(policy, repeated, noise))
    drawn = jnp.concatenate(actions)  # [3 M, B, A]
    repeated = jnp.broadcast_to(batch.states, (*drawn.shape[:2], batch.states.shape[-1]))
    values = twin_values(critics, repeated, drawn)
    if config.calibrated:
        of_policy = jnp.arange(len(drawn)) >= config.n_actions
        values = jnp.where(of_policy[:, None], calibrated(values, batch.returns), values)
    # A divisor of the density is no more than a shift here: the policy isn't differentiated.
    return values - jnp.concatenate(densities) if config.importance_sampling else values


def calibrated(values: jax.Array, returns: jax.Array) -> jax.Array:
    """max(Q, G): where the data returned more than Q says, Q isn't pushed down any further."""
    return jnp.maximum(values, returns)


def conservative_gap(
    at_actions: jax.Array, at_data: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """Mean over B of (soft maximum over M actions - value at the data's action), [2].

    Args:
        at_actions: [2, M, B], log-densities already subtracted.
        at_data: [2, B]
    """
    soft = jax.nn.logsumexp(at_actions / temperature, axis=1) * temperature
    return jnp.mean(soft - at_data, axis=-1)


def squashed_log_prob(policy: PolicyParams, states: jax.Array, actions: jax.Array) -> jax.Array:
    """Log-density [...] of given actions [..., A]; those at the bounds are moved inside by 1e-6."""
    # Half precision has no number between 1 - 1e-6 and 1.
    mean, log_std, actions = (wide(x) for x in (*policy_heads(policy, states), actions))
    noise = (jnp.arctanh(jnp.clip(actions, -1 + 1e-6, 1 - 1e-6)) - mean) * jnp.exp(-log_std)
    return policy_log_prob(policy, states, noise)


def _optimizers(config: CalQLConfig) -> Any:
    """`Networks` of optimizers."""
    slow: Any = optax.adam(config.policy_rate)
    fast: Any = optax.adam(config.critic_rate)
    return Networks(policy=slow, critics=fast, log_temperature=slow)

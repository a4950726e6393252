r"""Implicit Q-learning: an optimal teacher out of the data alone, at a tenth of Cal-QL's cost.

    L_V  = E[ L_tau( min_i Qbar_i(s, a) - V(s) ) ],   L_tau(u) = |tau - 1(u < 0)| u^2    (eq. 5)
    L_Q  = E[ (r + gamma V(s') - Q_i(s, a))^2 ]                                          (eq. 6)
    L_pi = -E[ exp(beta (min_i Qbar_i(s, a) - V(s))) log pi(a|s) ]                       (eq. 7)

No action outside the data is ever valued. Kostrikov, Nair and Levine, "Offline Reinforcement
Learning with Implicit Q-Learning", ICLR 2022, arXiv 2110.06169.

The policy is extracted with the density of the paper's policy, a Gaussian around tanh(m) that is
not squashed itself: actions at the bounds, which clipping makes common, have a finite likelihood
there. The same heads read as a tanh-Gaussian have the same mode and no larger spread.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.method import Method, Metrics, Objective
from jaxmethods.numerics.precision import wide
from jaxmethods.offline_rl.config import IQLConfig
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
    Layer,
    PolicyParams,
    init_policy,
    init_q,
    mlp,
    policy_heads,
)
from jaxmethods.offline_rl.transitions import Transitions, minibatch, return_scale
from jaxmethods.offline_rl.types import Norm, Teacher


class Networks(NamedTuple):
    """What is trained."""

    policy: PolicyParams
    critics: tuple[Layer, ...]
    """Leaves [2, ...]."""
    value: tuple[Layer, ...]


class State(NamedTuple):
    """Implicit Q-learning under way."""

    key: jax.Array
    networks: Networks
    target: tuple[Layer, ...]
    """Moving average of the critics."""
    optimizer: Networks
    """Adam's state for each of the networks."""
    norm: Norm
    reward_scale: jax.Array
    """[]: what rewards are multiplied with."""


def learner(config: IQLConfig, steps: int) -> Method:
    """Implicit Q-learning on `Transitions`; a step is one minibatch for all networks.

    Args:
        config: see there.
        steps: planned number of steps: the policy's learning rate decays to 0 over them (cosine).
    """
    optimizers = _optimizers(config, steps)

    def init(key: jax.Array, data: Transitions) -> State:
        return init_state(config, optimizers, key, data)

    def step(state: State, data: Transitions) -> tuple[State, Metrics]:
        return update(config, optimizers, state, data)

    def objective(state: State, data: Transitions) -> Objective:
        """The sum of the three losses."""

        def loss(networks: Networks, key: jax.Array) -> jax.Array:
            return losses(config, networks, state, minibatch(key, data, config.batch))[0]

        return Objective(state.networks, loss)

    return Method(init, step, objective)


def teacher(state: State) -> Teacher:
    """The policy and the critics, these in units of the simulator's rewards."""
    q1, q2 = separate(state.networks.critics, 1.0 / state.reward_scale)
    return Teacher(state.networks.policy, q1, q2, state.norm)


def init_state(config: IQLConfig, optimizers: Any, key: jax.Array, data: Transitions) -> State:
    """Fresh networks for the data's sizes.

    Args:
        config: sizes; static.
        optimizers: one for every network.
        key: [] typed random key.
        data: transitions, which say the sizes and the scale of rewards.

    Returns:
        Networks, their targets and optimizer states.
    """
    key, policy_key, critic_key, value_key = jax.random.split(key, 4)
    n_states, n_actions = data.states.shape[-1], data.actions.shape[-1]
    networks = Networks(
        policy=init_policy(policy_key, n_states, n_actions, config.hidden, config.n_layers),
        critics=init_twins(critic_key, n_states, n_actions, config.hidden),
        value=init_q(value_key, n_states, 0, config.hidden),
    )
    scale = return_scale(data) if config.scale_rewards else jnp.ones(())
    moments = Networks(*(o.init(n) for o, n in zip(optimizers, networks, strict=True)))
    return State(key, networks, networks.critics, moments, data.norm, scale)


def update(
    config: IQLConfig, optimizers: Any, state: State, data: Transitions
) -> tuple[State, Metrics]:
    """One minibatch: value function and policy against the target critics, then the critics.

    Args:
        config: the losses; static.
        optimizers: one for every network.
        state: networks, targets, moments and key.
        data: all transitions, of which a minibatch is drawn.

    Returns:
        The state after it, and metrics [].
    """
    key, draw = jax.random.split(state.key)
    batch = minibatch(draw, data, config.batch)
    gradients, metrics = jax.grad(losses, 1, has_aux=True)(config, state.networks, state, batch)
    networks, moments = apply_each(optimizers, gradients, state.optimizer, state.networks)
    target_critics = moving_average(state.target, networks.critics, config.target_rate)
    state = state._replace(key=key, networks=networks, target=target_critics, optimizer=moments)
    return state, metrics


def losses(
    config: IQLConfig, networks: Networks, state: State, batch: Transitions
) -> tuple[jax.Array, Metrics]:
    """The losses of value function, critics and policy on a minibatch.

    Args:
        config: static.
        networks: what is differentiated.
        state: with the target critics and the scale of rewards.
        batch: rows [B], rewards as the data have them.

    Returns:
        Their sum [], and metrics [].
    """
    batch = batch._replace(rewards=batch.rewards * state.reward_scale)
    target = jnp.min(twin_values(state.target, batch.states, batch.actions), axis=0)
    value = mlp(networks.value, batch.states)[..., 0]
    advantage = jax.lax.stop_gradient(target - value)
    value_loss = jnp.mean(expectile_loss(target - value, config.expectile))
    following = mlp(networks.value, batch.next_states)[..., 0]
    targets = bootstrapped(batch.rewards, batch.terminals, following, config.discount)
    values = twin_values(networks.critics, batch.states, batch.actions)
    critic_loss = squared_error(values, targets)
    weights = advantage_weights(advantage, config.temperature, config.max_weight)
    log_prob = unsquashed_log_prob(networks.policy, batch.states, batch.actions)
    policy_loss = -jnp.mean(weights * log_prob)
    metrics = {
        "value_loss": value_loss,
        "critic_loss": critic_loss,
        "policy_loss": policy_loss,
        "q": values.mean() / state.reward_scale,
    }
    # The three losses share no parameter (targets are constants), so one gradient serves all.
    return value_loss + critic_loss + policy_loss, metrics


def expectile_loss(errors: jax.Array, expectile: float) -> jax.Array:
    """|tau - 1(u < 0)| u^2, minimal on average at the tau-expectile of what u is an error of."""
    return jnp.where(errors < 0.0, 1.0 - expectile, expectile) * jnp.square(errors)


def advantage_weights(
    advantage: jax.Array, temperature: float, max_weight: float = 100.0
) -> jax.Array:
    """exp(beta A), at most `max_weight`."""
    # The bound goes inside: exp of a large advantage would overflow before it is clipped.
    return jnp.exp(jnp.minimum(temperature * advantage, jnp.log(max_weight)))


def unsquashed_log_prob(policy: PolicyParams, states: jax.Array, actions: jax.Array) -> jax.Array:
    """log N(a; tanh(m), std) summed over action dimensions, [...]; log std in [-5, 2]."""
    mean, log_std, actions = (wide(x) for x in (*policy_heads(policy, states), actions))
    log_std = jnp.maximum(log_std, -5.0)
    errors = (actions - jnp.tanh(mean)) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * jnp.square(errors) - log_std - 0.5 * jnp.log(2 * jnp.pi), axis=-1)


def _optimizers(config: IQLConfig, steps: int) -> Any:
    """`Networks` of optimizers."""
    decayed = optax.cosine_decay_schedule(config.learning_rate, steps)
    constant: Any = optax.adam(config.learning_rate)
    policy: Any = optax.adam(decayed)
    return Networks(policy, critics=constant, value=constant)

r"""Acting: align the observation, plan, invert, decode, all in one program.

    s_0 = z_q(E(obs)),  plan x with x_0 = s_0,  a = D_a(f(s_0, x_1)),  clipped to the action bounds

The plan is guided towards a return, on the scale of the task's own data. It is made anew every
`replan_every` steps, from noise or from what is left of the last plan; between plans the inverse
model leads from the state that was reached to the one that was planned next.

    weights = task_weights(config.planner, bank, task)         # once, not at every step
    memory = begin(config, episodes)
    actions, memory = act(config, weights, space, target, observations, memory, key)

`act` is pure: jit it with the config static, vmap it over seeds, scan it through an environment.

Hu et al., VQ-CD, arXiv 2410.15698, algorithm 2.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.numerics.lazily import when
from jaxmethods.vqcd.bank import TaskWeights
from jaxmethods.vqcd.config import PlannerConfig, PolicyConfig
from jaxmethods.vqcd.data.windows import Statistics, normalize, unnormalize
from jaxmethods.vqcd.diffusion import denoise, guided, noised, sample_plan
from jaxmethods.vqcd.inverse_dynamics import inverse_dynamics
from jaxmethods.vqcd.method import noise_function
from jaxmethods.vqcd.spaces import alignment
from jaxmethods.vqcd.spaces.perceptron import perceptron
from jaxmethods.vqcd.types import Params

LARGEST_ACTION = 1.0 - 1e-7
"""Actions are kept within [-1, 1] by as much as the published code keeps them."""


class TaskSpace(NamedTuple):
    """What leads from a task's observations and actions to the common space and back."""

    states: Statistics
    actions: Statistics
    state_module: Params
    action_module: Params
    low: jax.Array
    """[C + A] what plans are clipped to, `task_data.bounds`."""
    high: jax.Array


class Memory(NamedTuple):
    """What acting remembers from step to step."""

    plan: jax.Array
    """[E, T, C], C + A with diffused actions; the last plan."""
    age: jax.Array
    """[] int32: environment steps since it was made; -1 where there is none."""


def begin(config: PolicyConfig, episodes: int) -> Memory:
    """Makes the memory with which episodes begin.

    Args:
        config: sizes; static.
        episodes: E; static.

    Returns:
        A memory without a plan.
    """
    network = config.planner.network
    return Memory(jnp.zeros((episodes, network.horizon, network.channels)), jnp.int32(-1))


def act(
    config: PolicyConfig,
    weights: TaskWeights,
    space: TaskSpace,
    target: jax.Array | float,
    observations: jax.Array,
    memory: Memory,
    key: jax.Array,
) -> tuple[jax.Array, Memory]:
    """Actions for observations of one task.

    Args:
        config: sizes, sampler, when to plan anew; static.
        weights: the task's, from `bank.task_weights`.
        space: the task's statistics and alignment modules.
        target: [] or [E] the return to plan for, in [0, 1] of the task's data (or the task's
            number, for planners with `condition: task`).
        observations: [E, ds] as the environment gives them.
        memory: of the step before, or `begin`.
        key: [] typed key of this step.

    Returns:
        Actions [E, da] within (-1, 1), and the memory.

    Raises:
        ValueError: observations of another size than the task's.
    """
    size = space.states.shift.shape[-1]
    if observations.ndim != 2 or observations.shape[1] != size:
        raise ValueError(f"observations: expected [E, {size}], got {list(observations.shape)}")
    present = align_states(config, space, observations)
    if config.planner.behavior == "cloned":
        return decode_actions(config, space, perceptron(weights.inverse, present)), memory
    memory = _renewed(config, weights, space, target, present, memory, key)
    after = jax.lax.dynamic_index_in_dim(memory.plan, memory.age + 1, 1, keepdims=False)
    channels = config.planner.state_channels
    if config.planner.behavior == "inverse":
        aligned = inverse_dynamics(weights.inverse, present, after[:, :channels])
    else:
        now = jax.lax.dynamic_index_in_dim(memory.plan, memory.age, 1, keepdims=False)
        aligned = now[:, channels:]
    return decode_actions(config, space, aligned), memory


def align_states(config: PolicyConfig, space: TaskSpace, observations: jax.Array) -> jax.Array:
    """Observations [E, ds] in the common space, [E, C]."""
    rows = normalize(space.states, observations)
    return alignment.encode(space.state_module, config.states, rows).z


def decode_states(config: PolicyConfig, space: TaskSpace, aligned: jax.Array) -> jax.Array:
    """Aligned states [..., C], of a plan for example, as observations [..., ds]."""
    size = space.states.shift.shape[-1]
    rows = alignment.decode(space.state_module, config.states, aligned, size)
    return unnormalize(space.states, rows)


def decode_actions(config: PolicyConfig, space: TaskSpace, aligned: jax.Array) -> jax.Array:
    """Aligned actions [E, A] as the environment takes them, [E, da]."""
    if config.requantize_action and config.actions.discrete:
        latents = aligned.reshape(-1, config.actions.latents, config.actions.width)  # [E, m, d]
        codes = alignment.nearest_codes(space.action_module, config.actions, latents)
        aligned = codes.reshape(aligned.shape)  # [E, A]
    size = space.actions.shift.shape[-1]
    rows = alignment.decode(space.action_module, config.actions, aligned, size)
    return jnp.clip(unnormalize(space.actions, rows), -LARGEST_ACTION, LARGEST_ACTION)


def plan(
    config: PlannerConfig,
    weights: TaskWeights,
    space: TaskSpace,
    target: jax.Array | float,
    present: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """Plans from noise.

    Args:
        config: network and sampler; static.
        weights: the task's.
        space: the task's, for the bounds.
        target: [] or [E] the return to plan for.
        present: [E, C] aligned present states.
        key: [] typed key.

    Returns:
        [E, T, C], C + A with diffused actions; position 0 begins with `present`.
    """
    predict = noise_function(config, weights.network, _condition(target, present))
    shape = (config.network.horizon, config.network.channels)
    limits = _limits(config, space)
    return sample_plan(key, predict, config.diffusion, present, shape, limits)


def _condition(target: jax.Array | float, present: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(target, present.dtype), present.shape[:1])[:, None]


def _limits(config: PlannerConfig, space: TaskSpace) -> tuple[jax.Array, jax.Array]:
    channels = config.network.channels
    return space.low[:channels], space.high[:channels]


def _renewed(
    config: PolicyConfig,
    weights: TaskWeights,
    space: TaskSpace,
    target: jax.Array | float,
    present: jax.Array,
    memory: Memory,
    key: jax.Array,
) -> Memory:
    """The memory with a plan for this step."""

    def fresh() -> jax.Array:
        return plan(config.planner, weights, space, target, present, key)

    def warm() -> jax.Array:
        return _replan(config, weights, space, target, present, memory, key)

    if config.replan_every == 1 and not config.warm_start:
        return Memory(fresh(), jnp.int32(0))
    age = memory.age + 1
    none = memory.age < 0
    due = none | (age >= config.replan_every)
    # Not `lax.cond`, which would plan at every step where memories are mapped over seeds.
    if not config.warm_start:
        renewed = when(due, fresh, memory.plan)
    else:
        renewed = when(due & ~none, warm, when(none, fresh, memory.plan))
    return Memory(renewed, jnp.where(due, 0, age))


def _replan(
    config: PolicyConfig,
    weights: TaskWeights,
    space: TaskSpace,
    target: jax.Array | float,
    present: jax.Array,
    memory: Memory,
    key: jax.Array,
) -> jax.Array:
    """The last plan moved on by the steps since, noised and denoised again in few steps."""
    planner, calls = config.planner, config.warm_start
    start_key, step_key = jax.random.split(key)
    length = memory.plan.shape[1]
    # The last state is repeated at the end.
    places = jnp.minimum(jnp.arange(length) + memory.age + 1, length - 1)
    moved = memory.plan[:, places]
    shape = memory.plan.shape

    def noise(number: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(step_key, number), shape)

    start = noised(planner.diffusion, moved, jax.random.normal(start_key, shape), calls)
    predict = noise_function(planner, weights.network, _condition(target, present))
    guide = guided(predict, planner.diffusion.guidance)
    limits = _limits(planner, space)
    return denoise(guide, planner.diffusion, start, present, limits, noise, calls)[0]

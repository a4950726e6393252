"""Episodes of a planner: inside of one program in JAX, on the host in MuJoCo and Meta-World.

In both, all episodes of a seed are planned in one batch. On the host finished episodes leave the
batch, which has two sizes: each is compiled once.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.envs.finite import finite
from jaxmethods.offline_rl.metaworld import METAWORLD, MetaworldEpisodes
from jaxmethods.offline_rl.mujoco_returns import MujocoEpisodes, finite_policies, quiet
from jaxmethods.vqcd import PlannerConfig, PolicyConfig, TaskSpace, TaskWeights, act, begin
from jaxmethods.vqcd.config import PlayConfig, Run
from jaxmethods.vqcd.recipes.spaces import of_seed, space_axes
from jaxmethods.vqcd.recipes.tasks import Tasks


class Played(NamedTuple):
    """Episodes of all seeds, and of each seed's first what it planned and saw."""

    returns: Any
    """[seeds, E]; NaN of an episode in which something wasn't finite."""
    lengths: Any
    """[seeds, E] steps."""
    observations: Any
    """[seeds, steps, ds] before every step; the last one is repeated after the end."""
    plans: Any
    """[seeds, steps, T, C] aligned, as acted on at every step."""


def acting(config: PlannerConfig) -> PlannerConfig:
    """What of a planner's config acting depends on, so that learners share programs."""
    keep = ("network", "diffusion", "action_channels", "condition", "behavior")
    return PlannerConfig(**{name: getattr(config, name) for name in keep})


def policy_config(run: Run, planner: PlannerConfig) -> PolicyConfig:
    """How a planner acts.

    Raises:
        ValueError: sizes, replanning or warm starts that don't fit.
    """
    play = run.evaluation
    return PolicyConfig(
        planner=acting(planner),
        states=run.alignment.states,
        actions=run.alignment.actions,
        replan_every=play.replan_every,
        warm_start=play.warm_start,
        requantize_action=play.requantize_action,
    )


def play(
    tasks: Tasks,
    config: PolicyConfig,
    number: int,
    weights: TaskWeights,
    space: TaskSpace,
    target: float,
    keys: jax.Array,
) -> Played:
    """Plays a task with all seeds.

    Args:
        tasks: with the environment.
        config: how to act.
        number: the task's.
        weights: [seeds, ...] the task's.
        space: the task's, modules and bounds [seeds, ...].
        target: what plans aim at.
        keys: [seeds]; the same keys, weights and task give the same episodes.

    Returns:
        Returns and lengths [seeds, E], and each seed's first episode with its plans. Returns of
        a seed are NaN where a weight of its planner or of its modules isn't finite.
    """
    episodes, env = tasks.run.evaluation, tasks.environment(number)
    if env is not None:
        length = min(env.time_limit, episodes.steps or env.time_limit)
        found = jax.device_get(
            _in_jax(
                env, config, episodes.episodes, length, weights, space, jnp.float32(target), keys
            )
        )
    else:
        name = tasks.run.tasks[number].environment
        assert name is not None
        each = []
        for seed in range(keys.shape[0]):
            own = jax.tree.map(lambda leaf, s=seed: np.asarray(leaf)[s], weights)
            there = of_seed(space, seed)
            each.append(_on_the_host(name.name, config, episodes, own, there, target, keys[seed]))
        found = Played(*(_stacked([played[place] for played in each]) for place in range(4)))
    # Actions may be finite where weights are not: plans are clipped, and states are codes.
    whole = finite_policies((weights, space.state_module, space.action_module))
    return found._replace(returns=np.where(whole[:, None], found.returns, np.nan))


def _stacked(each: list[np.ndarray]) -> np.ndarray:
    """[seeds, ...], the shorter ones padded by their last row."""
    longest = max(len(values) for values in each)
    rows = [np.minimum(np.arange(longest), len(values) - 1) for values in each]
    return np.stack([values[row] for values, row in zip(each, rows, strict=True)])


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _in_jax(
    env: Any,
    config: PolicyConfig,
    episodes: int,
    length: int,
    weights: TaskWeights,
    space: TaskSpace,
    target: jax.Array,
    keys: jax.Array,
) -> Played:
    """All seeds' episodes as one program."""

    def one(weights: TaskWeights, space: TaskSpace, key: jax.Array) -> Played:
        reset_key, act_key = jax.random.split(key)
        state, timestep = jax.vmap(env.reset)(jax.random.split(reset_key, episodes))

        def step(carry: tuple, number: jax.Array) -> tuple[tuple, tuple]:
            state, observation, memory, running, returned, lengths = carry
            key = jax.random.fold_in(act_key, number)
            action, memory = act(config, weights, space, target, observation, memory, key)
            state, timestep = jax.vmap(env.step)(state, action)
            sound = finite((observation, action, timestep.reward, timestep.observation))
            reward = jnp.where(sound, timestep.reward, jnp.nan)
            returned = returned + jnp.where(running, reward, 0.0)
            lengths = lengths + running
            running = running & sound & ~timestep.last()
            seen = observation[0], memory.plan[0]
            after = (state, timestep.observation, memory, running, returned, lengths)
            return after, seen

        start = (
            state,
            timestep.observation,
            begin(config, episodes),
            jnp.ones(episodes, bool),
            jnp.zeros(episodes),
            jnp.zeros(episodes, jnp.int32),
        )
        (_, _, _, _, returned, lengths), seen = jax.lax.scan(step, start, jnp.arange(length))
        return Played(returned, lengths, *seen)

    return jax.vmap(one, (0, space_axes(space), 0))(weights, space, keys)


_act = jax.jit(act, static_argnums=0)


def _on_the_host(
    name: str,
    config: PolicyConfig,
    play: PlayConfig,
    weights: TaskWeights,
    space: TaskSpace,
    target: float,
    key: jax.Array,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One seed's returns [E], lengths [E], and the first episode's observations and plans."""
    seed_key, act_key = jax.random.split(key)
    first = int(jax.random.randint(seed_key, (), 0, 2**30))
    count = play.episodes
    returns, lengths = np.zeros(count), np.zeros(count, int)
    observed, planned, aim = [], [], jnp.float32(target)
    with quiet():
        simulators = _simulators(name, count, first)
        now = simulators.reset()
        running, rows = np.ones(count, bool), np.arange(count)
        memory = begin(config, count)
        for number in range(min(simulators.limit, play.steps or simulators.limit)):
            step_key = jax.random.fold_in(act_key, number)
            seen = jnp.asarray(now[rows])
            actions, memory = _act(config, weights, space, aim, seen, memory, step_key)
            chosen = np.asarray(actions)
            if running[0]:
                observed.append(now[0].copy())
                planned.append(np.asarray(memory.plan[0]))
            for place, index in enumerate(rows):
                if not running[index]:
                    continue
                # MuJoCo answers an action of NaN with its last state or a fresh one.
                sound, done, reward = bool(np.isfinite(chosen[place]).all()), False, np.nan
                if sound:
                    now[index], reward, done = simulators.step(int(index), chosen[place])
                    sound = bool(np.isfinite(now[index]).all() and np.isfinite(reward))
                returns[index] += reward if sound else np.nan
                lengths[index] += 1
                running[index] = sound and not done
            if not running.any():
                break
            keep = _remaining(running, rows)
            if len(keep) < len(rows):
                rows, memory = rows[keep], memory._replace(plan=memory.plan[keep])
    return returns, lengths, np.stack(observed), np.stack(planned)


def _simulators(name: str, count: int, seed: int) -> MujocoEpisodes | MetaworldEpisodes:
    if name.startswith(METAWORLD):
        return MetaworldEpisodes(name.removeprefix(METAWORLD), count, seed)
    return MujocoEpisodes(name, count, seed)


def _remaining(running: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Places in the batch to go on with: all, or a quarter of them where that many are enough.

    One smaller size, since every size is a program to compile. What is missing to a quarter is
    filled up with episodes that are over.
    """
    places = np.arange(len(rows))
    few = (len(rows) + 3) // 4
    if len(rows) < len(running) or running[rows].sum() > few:
        return places
    order = np.argsort(~running[rows], kind="stable")
    return np.sort(order[:few])

"""CommFormer at the published Predator-Prey size: acting, one epoch, one whole update."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.harness import Row, Settings, reference, time_jax
from jaxmethods import envs
from jaxmethods.commformer import CommFormer, policy
from jaxmethods.commformer.config import reference as reference_preset
from jaxmethods.commformer.method import trainer
from jaxmethods.training.loop import init_state


def rows(settings: Settings) -> Iterator[Row]:
    """Acting in 20 environments, and updates of 20 x 200 steps with 1 and 10 epochs."""
    yield act(settings)
    one, ten = (update(epochs, settings) for epochs in (1, 10))
    yield one
    yield ten


def act(settings: Settings, environments: int = 20) -> Row:
    """Sampled actions, log-probabilities and values for a batch of observations."""
    env = envs.make("predator_prey")
    network = CommFormer(reference_preset().network, env.num_agents, env.num_actions)
    reset = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), environments))
    observation = reset[1].observation
    params = policy.init(network, jax.random.key(1), observation.agents_view)
    graph = jnp.eye(env.num_agents)[::-1]

    def run(key: jax.Array, params: dict, observation: envs.Observation) -> policy.ActOutput:
        view, mask = observation.agents_view, observation.action_mask
        return policy.act(network, params, key, view, mask, graph)

    timing = time_jax(run, jax.random.key(2), params, observation, settings=settings)
    return Row(
        name="commformer/act",
        sizes={"environments": environments, "agents": env.num_agents, "cores": settings.cores},
        work=environments,
        unit="environment steps/s",
        ours=timing,
        reference=reference("commformer/act"),
    )


def update(epochs: int, settings: Settings) -> Row:
    """One update of the reference preset: 4000 steps, then so many epochs on them."""
    network, graph, ppo = reference_preset()
    ppo = ppo.model_copy(update={"epochs": epochs})
    env = envs.make("predator_prey")
    method = trainer(env, network, graph, ppo, updates=1000)
    state = init_state(method, jax.random.split(jax.random.key(0), 1), None)

    def run(state: tuple) -> tuple:
        return jax.vmap(method.step, (0, None))(state, None)

    timing = time_jax(run, state, settings=settings, donate=(0,))
    whole_loop = epochs == 10
    return Row(
        name="commformer/loop" if whole_loop else "commformer/loop_of_one_epoch",
        sizes={
            "environments": ppo.environments,
            "rollout": ppo.rollout,
            "epochs": epochs,
            "cores": settings.cores,
        },
        work=ppo.environments * ppo.rollout,
        unit="environment steps/s",
        ours=timing,
        reference=reference("commformer/loop") if whole_loop else None,
    )

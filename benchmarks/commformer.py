"""CommFormer on Predator-Prey: acting, one epoch of PPO, and the whole training loop.

At the published sizes next to the published code's numbers (reference.json) and to the same work
in PyTorch (torch_commformer.py), and at the sizes that accelerators are made for.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.harness import Row, Settings, reference, time_jax, time_torch
from jaxmethods import envs
from jaxmethods.commformer import CommFormer, PPOConfig, experience, method, policy, schedule
from jaxmethods.commformer import reference as reference_preset
from jaxmethods.method import Method
from jaxmethods.training.loop import init_state

UPDATES = 1000
"""Planned length of a run; only schedules read it."""


def rows(settings: Settings) -> Iterator[Row]:
    """Published sizes first, then many environments and many seeds."""
    yield act(settings)
    yield epoch(settings)
    small = loop("loop", "reference", settings)
    yield small
    yield loop("loop_10_agents", "hard", settings, rollout=50)
    environments, rollout = 2048, 32
    # A warm-up and three repeats are the least that is measured.
    if 4 * environments * rollout / small.rate < settings.seconds:
        yield loop("loop_many", "reference", settings, environments, rollout)
    yield seeds(settings)


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

    def make(device: str) -> Callable[[], Any]:
        import torch

        training = torch_training(env, reference_preset().ppo, device)
        graph = torch.eye(env.num_agents, device=device).flip(0)
        mask = torch.ones(environments, env.num_agents, env.num_actions, device=device).bool()
        training.network.eval()
        return lambda: training.network.act(training.obs, mask, graph)

    return Row(
        name="commformer/act",
        sizes={"environments": environments, "agents": env.num_agents, "cores": settings.cores},
        work=environments,
        unit="environment steps/s",
        ours=timing,
        reference=reference("commformer/act"),
        torch=time_torch(make, settings),
    )


def epoch(settings: Settings) -> Row:
    """One gradient step on all samples of a roll-out: forward, backward, clipping and Adam."""
    env = envs.make("predator_prey")
    preset = reference_preset()
    ppo = preset.ppo.model_copy(update={"epochs": 1})
    training = schedule.prepare(env, preset.network, preset.graph, ppo, UPDATES)
    levels = method.both_levels(training)
    noise = jnp.zeros((env.num_agents,) * 2)

    def start(key: jax.Array) -> tuple:
        state = method.init_state(training, levels, key)
        state, _, samples = experience.collect(training, state, noise, key)
        return state, samples

    state, samples = jax.jit(start)(jax.random.key(0))

    def run(state: experience.State, samples: experience.Experience) -> tuple:
        key, epochs_key = jax.random.split(state.key)
        after, value_norm, losses = method.train_epochs(
            training, levels, state, samples, noise, epochs_key
        )
        return state._replace(key=key, levels=after, value_norm=value_norm), losses

    timing = time_jax(run, state, samples, settings=settings, donate=(0,))

    def make(device: str) -> Callable[[], Any]:
        training = torch_training(env, ppo, device)
        collected = training.collect()
        return lambda: training.epoch(collected)

    samples = ppo.environments * ppo.rollout
    return Row(
        name="commformer/epoch",
        sizes={"samples": samples, "agents": env.num_agents, "cores": settings.cores},
        work=samples,
        unit="samples/s",
        ours=timing,
        reference=reference("commformer/epoch"),
        torch=time_torch(make, settings),
    )


def loop(
    name: str, size: str, settings: Settings, environments: int = 20, rollout: int = 200
) -> Row:
    """One update: a roll-out, then ten epochs on it, in an environment of a preset's size."""
    sizes = {"environments": environments, "rollout": rollout}
    ppo = reference_preset().ppo.model_copy(update=sizes)
    env: Any = envs.make("predator_prey", preset=size)
    timing = time_update(trainer_of(env, ppo), 1, settings)
    return Row(
        name=f"commformer/{name}",
        sizes={"agents": env.num_agents, **sizes, "epochs": ppo.epochs, "cores": settings.cores},
        work=environments * rollout,
        unit="environment steps/s",
        ours=timing,
        reference=reference(f"commformer/{name}"),
        torch=time_torch(lambda device: torch_training(env, ppo, device).update, settings),
    )


def seeds(settings: Settings, count: int = 64) -> Row:
    """One update of many seeds trained at once, against one seed alone."""
    on_cpu = jax.default_backend() == "cpu"
    sizes = {"environments": 4, "rollout": 8} if on_cpu else {"environments": 128, "rollout": 32}
    ppo = reference_preset().ppo.model_copy(update=sizes)
    training = trainer_of(envs.make("predator_prey"), ppo)
    one, many = (time_update(training, number, settings) for number in (1, count))
    return Row(
        name="commformer/seeds",
        sizes={"seeds": count, **sizes, "epochs": ppo.epochs, "cores": settings.cores},
        work=count * ppo.environments * ppo.rollout,
        unit="environment steps/s",
        ours=many,
        note=f"{count * one.median / many.median:.1f}x the rate of one seed",
    )


def trainer_of(env: envs.TeamEnvironment, ppo: PPOConfig) -> Method:
    """Training with the reference's network and graph."""
    network, graph, _ = reference_preset()
    return method.trainer(env, network, graph, ppo, UPDATES)


def time_update(training: Method, number: int, settings: Settings) -> Any:
    """Times one update of so many seeds."""
    state = init_state(training, jax.random.split(jax.random.key(0), number), None)

    def run(state: tuple) -> tuple:
        return jax.vmap(training.step, (0, None))(state, None)

    return time_jax(run, state, settings=settings, donate=(0,))


def torch_training(env: Any, ppo: PPOConfig, device: str) -> Any:
    """The PyTorch training of the same sizes."""
    from benchmarks.torch_commformer import PredatorPrey, Training

    batched = PredatorPrey(ppo.environments, env.n_predators, env.dim, env.vision, device)
    return Training(batched, reference_preset()._replace(ppo=ppo))

"""CommFormer on the command line: its one stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmethods.commformer import graph as graphs
from jaxmethods.commformer import method, schedule
from jaxmethods.commformer.config import CommFormerRun as Run
from jaxmethods.commformer.config import GraphConfig, NetworkConfig, PPOConfig
from jaxmethods.commformer.evaluate import evaluate, greedy_policy
from jaxmethods.commformer.recipes import figures
from jaxmethods.commformer.recipes.diagnosis import diagnosable
from jaxmethods.envs.config import EnvironmentConfig
from jaxmethods.envs.rollout import record_episode
from jaxmethods.envs.team.types import Observation
from jaxmethods.layout import Layout, Rule
from jaxmethods.method import Batch, Method, Metrics, made_once
from jaxmethods.numerics.keys import named
from jaxmethods.stages import Diagnosable, Evaluation, Recipe, Results, Train

RULES = (
    Rule(r"^(environment|timestep|episodes)/", ("data",)),
    Rule(r"(blocks|head)/.*kernel$", (None, "fsdp", "tensor")),  # stacked over layers or agents
    Rule(r"kernel$", ("fsdp", "tensor")),
)
"""Environments are split over `data`, kernels over `fsdp` and `tensor`.

Adam's moments are one flat vector (see `network_optimizer`) and stay whole on every device."""


class Team(NamedTuple):
    """What a run finds."""

    params: Any
    """The network's parameters."""
    edges: jax.Array
    """Logits of the graph [N, N]."""


def recipe(run: Run) -> Recipe:
    """One stage: training, judged by greedy play.

    Raises:
        ValueError: sizes that don't fit, an unknown environment.
        MissingExtraError: the environment, or what draws it, is not installed.
    """
    env = run.environment.make()
    _ = env.viewer  # draws the figures at the end, and needs what it needs now
    training = schedule.prepare(env, run.network, run.graph, run.ppo, run.updates)

    def measure(state: method.State, batch: Batch, key: jax.Array) -> Metrics:
        del batch
        graph = schedule.hardened_graph(training, state.levels.upper)
        sizes = run.evaluation
        return evaluate(
            env, training.network, state.levels.lower, graph, key, sizes.episodes, sizes.max_steps
        )

    def report(results: Results, folder: Path) -> None:
        first = jax.tree.map(lambda leaf: leaf[0], results["train"])
        draw_team(training, first, run.evaluation.max_steps, folder / "figures")

    def ready(results: Results, seed: int) -> Callable[[Observation], jax.Array]:
        team: Team = jax.tree.map(lambda leaf: leaf[seed], results["train"])
        graph = schedule.hardened_graph(training, team.edges)
        play = greedy_policy(training.network, team.params, graph)

        @jax.jit
        def policy(observation: Observation) -> jax.Array:
            """The most probable actions [N] for what a team observes, [B, N] for B teams."""
            one = observation.agents_view.ndim == 2
            teams = jax.tree.map(lambda x: x[None], observation) if one else observation
            actions = play(jax.random.key(0), teams)[0]
            return actions[0] if one else actions

        return policy

    def diagnosed(results: Results, seed: int) -> Diagnosable:
        team: Team = jax.tree.map(lambda leaf: leaf[seed], results["train"])
        graph = schedule.hardened_graph(training, team.edges)
        key = named(jax.random.key(run.seed + seed), "diagnosis")
        return diagnosable(training, team.params, graph, key)

    train = Train(
        "train",
        made_once(_trainer, run.environment, run.network, run.graph, run.ppo, run.updates),
        run.updates,
        result=lambda state, batch: Team(state.levels.lower, state.levels.upper),
        evaluation=Evaluation(measure, score="success_rate"),
        layout=Layout(state=RULES),
        main=True,
    )
    headline = ("train/success_rate", "train/episode_length")
    return Recipe([train], report, ("train",), headline, ready, diagnosed)


def _trainer(
    environment: EnvironmentConfig,
    network: NetworkConfig,
    graph: GraphConfig,
    ppo: PPOConfig,
    updates: int,
) -> Method:
    return method.trainer(environment.make(), network, graph, ppo, updates)


def draw_team(
    training: schedule.CommFormerTraining, team: Team, max_steps: int, folder: Path
) -> None:
    """Writes the graph and one greedy episode (a strip of frames and an animation).

    Args:
        training: the fixed facts of the training.
        team: parameters and edge logits of one seed.
        max_steps: the length of the episode that is drawn, at most.
        folder: of the figures.
    """
    graph = schedule.hardened_graph(training, team.edges)
    learned = training.graph_kind == "learned"
    edges = graphs.selectable(team.edges, training.graph.self_edges)
    preference = figures.edge_preference(edges) if learned else None
    figures.draw_graph(np.asarray(graph), preference, folder / "communication_graph.png")
    env: Any = training.env
    play = greedy_policy(training.network, team.params, graph)
    recorded = jax.jit(lambda key: record_episode(env, play, key, max_steps))
    states = jax.device_get(recorded(jax.random.key(0)).states)
    env.filmstrip(states, str(folder / "episode_frames.png"))
    env.animate(states, interval=500, save_path=str(folder / "episode_animation.gif"))

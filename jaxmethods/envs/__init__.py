"""Multi-agent environments in pure JAX, as `jumanji.Environment` classes, and roll-outs.

    env = envs.make("predator_prey", n_predators=3, dim=5, vision=1)
    state, timestep = jax.jit(env.reset)(jax.random.key(0))
    results = envs.play_episodes(env, policy, key, episodes=100, max_steps=20)

`ENVIRONMENTS` has them by the names of configs; `help(envs.PredatorPrey)` and so on say what is
seen, done and rewarded:

| name | class | where it comes from |
| --- | --- | --- |
| `predator_prey` | `PredatorPrey` | IC3Net, CommFormer |
| `predator_capture_prey` | `PredatorCapturePrey` | heterogeneous teams |
| `traffic_junction` | `TrafficJunction` | IC3Net |
| `robot_warehouse` | `RobotWarehouse` | jumanji |
| `level_based_foraging` | `LevelBasedForaging` | jumanji |
| `connector` | `Connector` | jumanji |
| `cleaner` | `Cleaner` | jumanji |
| `search_and_rescue` | `SearchAndRescue` | jumanji |
| `smax` | `Smax` | JaxMARL |

All are a `TeamEnvironment` and give an `Observation` of every agent.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax

from jaxmethods.config import nearest
from jaxmethods.envs.adapters import Cleaner as Cleaner
from jaxmethods.envs.adapters import Connector as Connector
from jaxmethods.envs.adapters import LevelBasedForaging as LevelBasedForaging
from jaxmethods.envs.adapters import RobotWarehouse as RobotWarehouse
from jaxmethods.envs.adapters import SearchAndRescue as SearchAndRescue
from jaxmethods.envs.adapters import Smax as Smax
from jaxmethods.envs.rollout import EpisodeResults as EpisodeResults
from jaxmethods.envs.rollout import Policy as Policy
from jaxmethods.envs.rollout import Recording as Recording
from jaxmethods.envs.rollout import Trajectory as Trajectory
from jaxmethods.envs.rollout import play_episodes, record_episode, rollout, vectorize
from jaxmethods.envs.team.environment import TeamEnvironment as TeamEnvironment
from jaxmethods.envs.team.predator_capture_prey import PredatorCapturePrey as PredatorCapturePrey
from jaxmethods.envs.team.predator_prey import PredatorPrey as PredatorPrey
from jaxmethods.envs.team.traffic_junction import TrafficJunction as TrafficJunction
from jaxmethods.envs.team.types import Observation as Observation

ENVIRONMENTS: dict[str, type[TeamEnvironment]] = {
    "predator_prey": PredatorPrey,
    "predator_capture_prey": PredatorCapturePrey,
    "traffic_junction": TrafficJunction,
    "robot_warehouse": RobotWarehouse,
    "level_based_foraging": LevelBasedForaging,
    "connector": Connector,
    "cleaner": Cleaner,
    "search_and_rescue": SearchAndRescue,
    "smax": Smax,
}
"""Name in a config to class."""

__all__ = [
    "make",
    "play_episodes",
    "record_episode",
    "rollout",
    "vectorize",
]


def make(name: str, *, preset: str | None = None, **arguments: Any) -> TeamEnvironment:
    """Builds the environment `name` of `ENVIRONMENTS`.

    Args:
        name: for instance "predator_prey".
        preset: one of the class's presets; `arguments` then override it.
        arguments: of the class's constructor.

    Raises:
        ValueError: one line: an unknown name or argument with the nearest right one, or the
            class's own refusal of a value.
    """
    if name not in ENVIRONMENTS:
        raise ValueError(f"unknown environment {name!r}{nearest(name, ENVIRONMENTS)}")
    environment = ENVIRONMENTS[name]
    known = list(inspect.signature(environment).parameters)
    for argument in arguments:
        if argument not in known:
            raise ValueError(f"{name}: unknown argument {argument!r}{nearest(argument, known)}")
    with jax.ensure_compile_time_eval():  # jumanji compares bounds of specs, also inside of jit
        if preset is None:
            return environment(**arguments)
        return environment.preset(preset, **arguments)

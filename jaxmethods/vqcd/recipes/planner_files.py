"""Trained planners as folders: plain arrays, `planner.npz`, vouched for by `card.json`.

    planner = load_planner("runs/mine/planner")
    memory = planner.begin(episodes=4)
    actions, memory = planner.act("hopper", observations, memory, key)

The arrays are the averaged weights of all tasks as one tree, the owners of what is shared out, and
of every task its modules, statistics and bounds, under the names of the trees they come from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmethods
from jaxmethods.config import nearest
from jaxmethods.data.offline import DataError, read_npz
from jaxmethods.files import npz_bytes, write_atomically
from jaxmethods.layout import path_name
from jaxmethods.stages import Results
from jaxmethods.vqcd import (
    Bank,
    Memory,
    PlannerConfig,
    PolicyConfig,
    Statistics,
    TaskSpace,
    TaskWeights,
    act,
    begin,
    task_weights,
)
from jaxmethods.vqcd.recipes.learners import Learner
from jaxmethods.vqcd.recipes.play import policy_config
from jaxmethods.vqcd.recipes.spaces import Aligned, of_seed, space_of
from jaxmethods.vqcd.recipes.tasks import Tasks

FORMAT, VERSION = "jaxmethods.vqcd", 1
ARRAYS, CARD = "planner.npz", "card.json"
_act = jax.jit(act, static_argnums=0)


@dataclass(frozen=True)
class Planner:
    """A planner of several tasks."""

    planner: PlannerConfig
    policy: PolicyConfig
    bank: Bank
    """Averaged weights in `params` and `ema`."""
    spaces: Mapping[str, TaskSpace]
    card: Mapping[str, Any]

    def begin(self, episodes: int) -> Memory:
        """The memory of episodes that begin."""
        return begin(self.policy, episodes)

    def number(self, task: str) -> int:
        """A task's number. Raises `ValueError` for an unknown name."""
        names = [one["name"] for one in self.card["tasks"]]
        if task not in names:
            raise ValueError(f"task: unknown task {task!r}{nearest(task, names)}")
        return names.index(task)

    def weights(self, task: str) -> TaskWeights:
        """The weights that plans for a task are made with."""
        number = self.number(task)
        owner = self.card["tasks"][number].get("owner", number)
        return task_weights(self.planner, self.bank, owner)

    def act(
        self,
        task: str,
        observations: jax.Array,
        memory: Memory,
        key: jax.Array,
        target: float | None = None,
    ) -> tuple[jax.Array, Memory]:
        """Actions [E, da] for observations [E, ds] of a task.

        Args:
            task: its name.
            observations: as the environment gives them.
            memory: of the step before, or `begin`.
            key: [] typed key of this step.
            target: what to plan for; None: what the card says.

        Returns:
            The actions, and the memory for the next step.

        Raises:
            ValueError: an unknown task, or observations of another size.
        """
        own = self.card["tasks"][self.number(task)]
        aim = own["target"] if target is None else target
        weights, space = self.weights(task), self.spaces[task]
        aim = jnp.float32(aim)
        return _act(self.policy, weights, space, aim, jnp.asarray(observations), memory, key)


def save_planners(tasks: Tasks, learner: Learner, results: Results, folder: Path) -> None:
    """Writes the planner of every seed: `planner`, or `planner-seed3` where there are several.

    Args:
        tasks: the run's tasks.
        learner: the one that was trained.
        results: of the run's stages.
        folder: of the run.
    """
    run = tasks.run
    bank = jax.device_get(learner.bank(results, len(run.tasks) - 1)._replace(key=None))
    spaces = {task.name: space_of(run, results, n) for n, task in enumerate(run.tasks)}
    config = policy_config(run, learner.planner)
    described = []
    for number, task in enumerate(run.tasks):
        found: Aligned = results[f"codes_{task.name}"]
        observations, actions = (len(norm.shift) for norm in found.norms)
        aim = float(number) if learner.planner.condition == "task" else found.target
        environment = None if task.environment is None else task.environment.name
        sizes = {"observations": observations, "actions": actions, "environment": environment}
        # Of some learners a task's weights are not its number's, but its turn's.
        own = {"owner": learner.task(number), "target": aim}
        described.append({"name": task.name, **sizes, **own})
    for seed in range(run.seeds):
        name = "planner" if run.seeds == 1 else f"planner-seed{run.seed + seed}"
        own = {task: of_seed(space, seed) for task, space in spaces.items()}
        tree = {"weights": bank.ema, "owner": bank.owner}
        tree = jax.tree.map(lambda leaf, s=seed: leaf[s], tree) | {"spaces": own}
        card = {
            "learner": learner.title,
            "seed": run.seed + seed,
            "tasks": described,
            "order": [run.tasks[number].name for number in run.sequence],
            "planner": learner.planner.model_dump(mode="json"),
            "policy": config.model_dump(mode="json"),
        }
        write_planner(folder / name, tree, card)


def write_planner(folder: Path, tree: Mapping[str, Any], card: Mapping[str, Any]) -> None:
    """Writes arrays and card into a new folder. Raises `DataError` where a number is NaN."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {path_name(path): np.asarray(leaf) for path, leaf in leaves}
    _refuse_nan(arrays, f"planner {folder}")
    content = npz_bytes(arrays)
    whole = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": hashlib.sha256(content).hexdigest(),
        **card,
        "jaxmethods": jaxmethods.__version__,
    }
    folder.mkdir()
    write_atomically(folder / ARRAYS, content)
    write_atomically(folder / CARD, json.dumps(whole, indent=1) + "\n")


def _refuse_nan(arrays: Mapping[str, np.ndarray], where: str) -> None:
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
            raise DataError(f"{where}: {name}: expected numbers, got NaN")


def load_planner(folder: Path | str) -> Planner:
    """Opens a saved planner.

    Raises:
        DataError: a file is missing or damaged, or the two don't belong together; NaN.
    """
    folder = Path(folder)
    where = f"planner {folder}"
    card = _read_card(folder / CARD, where)
    try:
        content = (folder / ARRAYS).read_bytes()
    except OSError as error:
        raise DataError(f"{where}: {ARRAYS} cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != card["sha256"]:
        raise DataError(f"{where}: {ARRAYS} is not that of the card: damaged, or another's")
    arrays = read_npz(folder / ARRAYS)
    _refuse_nan(arrays, where)
    tree = _nested({name: jnp.asarray(x) for name, x in arrays.items()})
    planner = PlannerConfig.model_validate(card["planner"])
    policy = PolicyConfig.model_validate(card["policy"])
    # What a planner doesn't have left no arrays: one that clones the behavior has no network.
    weights = {"network": {}, "adapters": {}, "inverse": {}} | tree["weights"]
    owner = jax.tree_util.tree_map_with_path(partial(_owner_of, tree.get("owner", {})), weights)
    bank = Bank(weights, weights, owner, jnp.int32(planner.tasks), jax.random.key(0), None)
    spaces = {name: _space(part) for name, part in tree["spaces"].items()}
    return Planner(planner, policy, bank, spaces, card)


def _owner_of(owner: Any, path: Any, leaf: Any) -> Any:
    """The owners of a leaf of the weights; None where there are none."""
    del leaf
    for step in path:
        owner = owner.get(step.key) if isinstance(owner, Mapping) else None
    return owner


def _space(part: Mapping[str, Any]) -> TaskSpace:
    return TaskSpace(
        states=Statistics(**part["states"]),
        actions=Statistics(**part["actions"]),
        state_module=part.get("state_module", {}),
        action_module=part.get("action_module", {}),
        low=part["low"],
        high=part["high"],
    )


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return tree


def _read_card(path: Path, where: str) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{where}: its {CARD} is missing") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: its {CARD} cannot be read ({error})") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise DataError(f"{where}: {CARD} is not the card of a planner")
    if card.get("version") != VERSION:
        raise DataError(
            f"{where}: card of version {card.get('version')!r}, this library reads {VERSION}"
        )
    for name in ("sha256", "tasks", "planner", "policy"):
        if name not in card:
            raise DataError(f"{where}: its {CARD} has no {name!r}")
    return card

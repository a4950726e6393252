"""Stages that align a task: its modules are trained, then all of its rows encoded, once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.layout import Layout, Rule, seed_axes
from jaxmethods.method import Method, Metrics, Objective
from jaxmethods.stages import Arrays, Compute, Part, Place, Results, Train
from jaxmethods.vqcd import (
    AlignmentConfig,
    AlignmentRows,
    Statistics,
    TaskData,
    TaskSpace,
    align_rows,
    alignment_rows,
    parallel,
    trimmed,
)
from jaxmethods.vqcd.config import Run
from jaxmethods.vqcd.data.windows import normalize
from jaxmethods.vqcd.recipes.tasks import Tasks
from jaxmethods.vqcd.spaces import aligner, alignment

SIDES = ("states", "actions")
PROBES = 8
"""Observations that plans are compared on."""
STRETCH_ROWS = 4096
"""Rows that the scale of a space is measured on."""
TOGETHER = "align"
"""The stage that trains all tasks' modules."""
TOGETHER_LAYOUT = Layout((Rule("", ("data",)),), (Rule("", ("data",)),))
"""Tasks are split over `data`: their modules have nothing in common."""


class Aligned(NamedTuple):
    """A task as planners see it, on the host. What depends on a module has an axis of seeds."""

    data: TaskData
    """Padded to a power of two, so that tasks of similar length share one program."""
    norms: tuple[Statistics, Statistics]
    low: np.ndarray
    """[C + A]"""
    high: np.ndarray
    held_starts: np.ndarray
    """[H] first rows of the windows that nothing was trained on."""
    held_actions: np.ndarray
    """[H, da] normalized actions in them."""
    probes: np.ndarray
    """[PROBES, ds] observations."""
    target: float
    """The return that plans aim at."""
    episode_returns: np.ndarray
    """[E] returns of the data's episodes."""
    quality: dict[str, np.ndarray]
    """[seeds] name -> what was measured of the modules on rows held out."""


def stage_name(run: Run, number: int) -> str:
    """The name of the stage that trains a task's modules, or those of all tasks together."""
    return TOGETHER if run.alignment.together else f"align_{run.tasks[number].name}"


def trained_sides(run: Run) -> list[str]:
    """The kinds of rows, states and actions, whose modules have something to train."""
    return [side for side in SIDES if getattr(run.alignment, side).trained]


@lru_cache(maxsize=8)
def both_aligners(config: Any) -> Method:
    """Trains a module for states and one for actions at once; batch and state are dictionaries."""
    sides = [side for side in SIDES if getattr(config, side).trained]
    methods = {side: aligner.aligner(getattr(config, side)) for side in sides}
    if config.together:
        methods = {side: parallel(one) for side, one in methods.items()}

    def init(key: jax.Array, batch: Any) -> Any:
        return {side: one.init(key, batch[side]) for side, one in methods.items()}

    def step(state: Any, batch: Any) -> tuple[Any, Metrics]:
        after, metrics = {}, {}
        for side, one in methods.items():
            after[side], found = one.step(state[side], batch[side])
            metrics |= {f"{side}_{name}": value for name, value in found.items()}
        return after, metrics

    def objective(state: Any, batch: Any) -> Objective:
        own = {
            side: one.objective(state[side], batch[side])
            for side, one in methods.items()
            if one.objective is not None
        }

        def loss(params: Any, key: jax.Array) -> jax.Array:
            return sum((one.loss(params[side], key) for side, one in own.items()), jnp.zeros(()))

        return Objective({side: one.params for side, one in own.items()}, loss)

    return Method(init, step, objective)


def align_stage(run: Run, tasks: Tasks, numbers: Sequence[int]) -> Train:
    """Trains the modules of one task, or of all; the result is their parameters by side."""

    def rows(number: int, side: str) -> np.ndarray:
        arrays = tasks.arrays(number)
        norm = arrays.state_norm if side == "states" else arrays.action_norm
        raw = getattr(arrays, side)[arrays.rows(False)]
        return np.asarray(normalize(norm, raw))

    def data(results: Results) -> dict[str, AlignmentRows]:
        del results
        sides = trained_sides(run)
        found: dict[str, list[np.ndarray]] = {side: [] for side in sides}
        for number in numbers:
            for side in sides:
                found[side].append(rows(number, side))
        # Numbers of tasks, so that orders of them change nothing.
        batch = {
            side: alignment_rows(each)._replace(
                module=jnp.asarray([2 * n + SIDES.index(side) for n in numbers], jnp.int32)
            )
            for side, each in found.items()
        }
        if run.alignment.together:
            return batch
        return jax.tree.map(lambda leaf: leaf[0], batch)

    def result(state: Any, batch: Any) -> Any:
        params = {side: one.params for side, one in state.items()}
        for side in params if run.alignment.stretch else ():
            stretch = partial(stretched, config=getattr(run.alignment, side))
            stretch = jax.vmap(stretch) if run.alignment.together else stretch
            params[side] = stretch(params[side], batch[side])
        return params

    steps = max(getattr(run.alignment, side).steps for side in trained_sides(run))
    return Train(
        stage_name(run, numbers[0]),
        both_aligners(run.alignment),  # pyright: ignore[reportArgumentType]
        steps,
        data,
        result=result,
        layout=TOGETHER_LAYOUT if run.alignment.together else Layout(),
    )


def stretched(params: Any, data: AlignmentRows, config: AlignmentConfig) -> Any:
    """The same module with codes c times as large, so that aligned rows have root mean square 1.

    Encoder and codes are multiplied by c, the decoder's first weights divided by it: nothing but
    the scale of the common space changes, which is what diffusion's noise is measured against.
    Codes stay within rho. Kinds without a codebook are as they were.
    """
    if config.kind != "vq":
        return params
    rows = jax.random.randint(jax.random.key(0), (STRETCH_ROWS,), 0, data.count)
    z = alignment.encode(params, config, data.rows[rows]).z
    c = 1.0 / jnp.sqrt(jnp.square(z).mean())
    c = jnp.minimum(c, config.rho / jnp.abs(params["codebook"]).max())
    last, first = f"dense{len(config.encoder)}", "dense0"
    encoder, decoder = dict(params["encoder"]), dict(params["decoder"])
    encoder[last] = jax.tree.map(lambda leaf: c * leaf, encoder[last])
    decoder[first] = decoder[first] | {"weight": decoder[first]["weight"] / c}
    return params | {"encoder": encoder, "decoder": decoder, "codebook": c * params["codebook"]}


def modules_of(run: Run, results: Results, number: int, sizes: tuple[int, int]) -> dict[str, Any]:
    """A task's alignment modules by side.

    Args:
        run: the run's config.
        results: of the run's stages.
        number: the task's.
        sizes: dimensions of its states and of its actions.

    Returns:
        "states" and "actions" -> parameters [seeds, ...]; {} where nothing is trained.
    """
    found: dict[str, Any] = {side: {} for side in SIDES}
    for side, size in zip(SIDES, sizes, strict=True):
        config: AlignmentConfig = getattr(run.alignment, side)
        if not config.trained:
            continue
        params = results[stage_name(run, number)][side]
        if run.alignment.together:
            params = jax.tree.map(lambda leaf: leaf[:, number], params)
            cut = partial(trimmed, config=config, size=size)
            params = jax.vmap(cut)(params)
        found[side] = params
    return found


def codes_stage(run: Run, tasks: Tasks, number: int) -> Compute:
    """Encodes all rows of a task and says what is trained on; the result is `Aligned`."""
    name = run.tasks[number].name

    def parts(results: Results, place: Place) -> list[Part]:
        del place
        return [Part(name, partial(_encoded, run, tasks, number, results))]

    return Compute(
        f"codes_{name}",
        parts,
        lambda found: aligned(run, number, found[0]),
        lambda found: dict(found.quality),
    )


def _encoded(run: Run, tasks: Tasks, number: int, results: Results) -> Arrays:
    arrays = tasks.arrays(number)
    sizes = arrays.states.shape[1], arrays.actions.shape[1]
    modules = modules_of(run, results, number, sizes)
    held = arrays.rows(True) if run.alignment.held_out else arrays.rows(False)
    found: dict[str, Any] = {}
    lows, highs = [], []
    for side, norm in zip(SIDES, (arrays.state_norm, arrays.action_norm), strict=True):
        config: AlignmentConfig = getattr(run.alignment, side)
        x = normalize(norm, jnp.asarray(getattr(arrays, side)))
        rows, table = _over_seeds(run, config, modules[side], x)
        found[side] = rows
        if table is not None:
            found[f"{side}_table"] = table
        measured, low, high = _measured(config, modules[side], rows, table, x, held)
        lows.append(low)
        highs.append(high)
        found |= {f"quality_{side}_{name}": np.asarray(value) for name, value in measured.items()}
        found |= {f"{side}_shift": norm.shift, f"{side}_scale": norm.scale}
    horizon = run.planner.network.horizon
    starts = arrays.starts(horizon, False)
    returns = arrays.returns_to_go[starts]
    held_starts = arrays.starts(horizon, bool(run.alignment.held_out))
    return found | {
        "low": np.concatenate(lows, -1),
        "high": np.concatenate(highs, -1),
        "starts": starts,
        "returns": returns,
        "held_starts": held_starts,
        "held_actions": normalize(arrays.action_norm, jnp.asarray(arrays.actions)[held_starts]),
        "probes": arrays.states[np.linspace(0, len(arrays.states) - 1, PROBES).astype(int)],
        "target": _target(run, number, returns),
        "episode_returns": arrays.episode_returns,
    }


def _target(run: Run, number: int, returns: np.ndarray) -> float:
    target = run.tasks[number].target or run.target
    if target.value is not None:
        return target.value
    assert target.quantile is not None
    return float(np.quantile(returns, target.quantile))


def _over_seeds(run: Run, config: AlignmentConfig, module: Any, x: jax.Array) -> tuple[Any, Any]:
    """Rows or codes [seeds, N, ...] and tables [seeds, codes, d]."""
    if not config.trained:
        rows, _ = align_rows({}, config, x)
        return np.broadcast_to(np.asarray(rows), (run.seeds, *rows.shape)), None
    rows, table = _aligned_rows(module, config, x)
    return np.asarray(rows), None if table is None else np.asarray(table)


@partial(jax.jit, static_argnums=1)
def _aligned_rows(module: Any, config: AlignmentConfig, x: jax.Array) -> tuple[Any, Any]:
    return jax.vmap(lambda params: align_rows(params, config, x))(module)


@partial(jax.jit, static_argnums=1)
def _errors(module: Any, config: AlignmentConfig, x: jax.Array) -> jax.Array:
    """[seeds] mean squared errors of rows that go there and back."""

    def error(params: Any) -> jax.Array:
        z = alignment.encode(params, config, x).z
        return jnp.square(alignment.decode(params, config, z, x.shape[1]) - x).mean()

    return jax.vmap(error)(module)


def _measured(
    config: AlignmentConfig, module: Any, rows: np.ndarray, table: Any, x: jax.Array, held: Any
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Numbers [seeds] on rows held out, and the bounds [seeds, channels] of aligned rows."""
    errors = _errors(module, config, x[held]) if config.trained else np.zeros(len(rows))
    found: dict[str, Any] = {"error": errors}
    if table is None:
        low, high = rows.min(1), rows.max(1)
        return found | {"largest": np.abs(rows).max((1, 2))}, low, high
    codes = table.shape[1]
    used = [len(np.unique(of_seed)) / codes for of_seed in rows]
    largest = [np.abs(t[np.unique(r)]).max() for t, r in zip(table, rows, strict=True)]
    bound = np.full((len(rows), rows.shape[-1] * table.shape[-1]), config.rho, np.float32)
    return found | {"codes_used": np.array(used), "largest": np.array(largest)}, -bound, bound


def aligned(run: Run, number: int, arrays: Arrays) -> Aligned:
    """From a part's arrays."""
    starts = np.asarray(arrays["starts"], np.int32)
    windows, rows = len(starts), arrays["states"].shape[1]
    more_rows, more = _padding(rows), _padding(windows)

    def padded(side: str) -> np.ndarray:
        return np.pad(arrays[side], ((0, 0), (0, more_rows), (0, 0)))

    data = TaskData(
        states=jnp.asarray(padded("states")),
        actions=jnp.asarray(padded("actions")),
        state_table=_maybe(arrays, "states_table"),
        action_table=_maybe(arrays, "actions_table"),
        starts=jnp.asarray(np.pad(starts, (0, more))),
        returns=jnp.asarray(np.pad(arrays["returns"], (0, more))),
        count=jnp.int32(windows),
        task=jnp.full(windows + more, number, jnp.int32),
    )
    norms = [Statistics(arrays[f"{side}_shift"], arrays[f"{side}_scale"]) for side in SIDES]
    return Aligned(
        data,
        (norms[0], norms[1]),
        arrays["low"],
        arrays["high"],
        np.asarray(arrays["held_starts"], np.int32),
        arrays["held_actions"],
        arrays["probes"],
        float(arrays["target"]),
        arrays["episode_returns"],
        {
            name.removeprefix("quality_"): value
            for name, value in arrays.items()
            if name.startswith("quality_")
        },
    )


def _maybe(arrays: Arrays, name: str) -> jax.Array | None:
    return jnp.asarray(arrays[name]) if name in arrays else None


def _padding(length: int) -> int:
    """How much is missing to the next power of two."""
    return (1 << (length - 1).bit_length()) - length


def space_of(run: Run, results: Results, number: int) -> TaskSpace:
    """What leads from a task's observations to the common space and back; modules and bounds
    [seeds, ...]."""
    found: Aligned = results[f"codes_{run.tasks[number].name}"]
    sizes = len(found.norms[0].shift), len(found.norms[1].shift)
    modules = modules_of(run, results, number, sizes)
    norms = jax.tree.map(jnp.asarray, found.norms)
    return TaskSpace(
        norms[0],
        norms[1],
        modules["states"],
        modules["actions"],
        jnp.asarray(found.low),
        jnp.asarray(found.high),
    )


OWN_OF_SEEDS = ("^(states|actions|state_table|action_table)$",)
"""Leaves of aligned data that depend on a seed's modules."""
SPACES_OF_SEEDS = ("^(state_module|action_module)/|^(low|high)$",)
"""The same of what `space_of` returns."""


def space_axes(space: TaskSpace) -> TaskSpace:
    """`jax.vmap`'s axes of what `space_of` returns."""
    return seed_axes(space, SPACES_OF_SEEDS)


def of_seed(space: TaskSpace, seed: int) -> TaskSpace:
    """One seed's part of what `space_of` returns, on the host."""

    def pick(axis: int | None, leaf: Any) -> Any:
        return leaf if axis is None else np.asarray(leaf)[seed]

    return jax.tree.map(pick, space_axes(space), space, is_leaf=lambda axis: axis is None)

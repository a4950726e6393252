"""What every training stage of a finished run goes down on, held against what its steps report."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.interpret import trees
from jaxmethods.layout import path_name
from jaxmethods.runs import LoadedRun
from jaxmethods.stages import Train

DRAWS = 24
"""Steps, and losses, that are compared in the mean: either splits its keys in its own way."""


def plain_loss(metrics: Mapping[str, jax.Array]) -> jax.Array:
    """The metric that most methods name so."""
    return metrics["loss"]


def check_objectives(
    run: LoadedRun,
    reported: Mapping[str, Callable[[Any], jax.Array]] | None = None,
    *,
    not_a_derivative: Sequence[str] = (),
    stages: Sequence[str] | None = None,
    slack: float = 0.0,
) -> None:
    """A monitor's loss is what steps report, and its gradient is the slope of that loss.

    Where steps report the norm of their gradient, the monitor's gradient has it too.

    Args:
        run: a finished run.
        reported: for stages whose metric is not `loss`: metrics of a step -> what it went down on.
        not_a_derivative: stages whose gradient is not that of the loss's value, by design: it goes
            straight through a rounding, or not through a target, or the loss has jumps.
        stages: those that are looked at; None: all that train.
        slack: relative difference allowed beside four standard errors, where steps report what
            their parameters come to on the way.
    """
    trained = [one for one in run.recipe.stages if isinstance(one, Train)]
    for stage in trained:
        if stages is None or stage.name in stages:
            told = (reported or {}).get(stage.name, plain_loss)
            _check(run, stage, told, stage.name not in not_a_derivative, slack)


def _check(run: LoadedRun, stage: Train, told: Any, slope: bool, slack: float) -> None:
    method, state, batch = stage.method, run.state(stage.name), stage.data(run.results)
    assert method.objective is not None, stage.name
    state = jax.tree.map(lambda leaf: leaf[0], state)

    def first(path: Any, leaf: Any) -> Any:
        per_seed = any(re.search(own, path_name(path)) for own in stage.layout.per_seed)
        return leaf[0] if per_seed else leaf

    batch = jax.tree_util.tree_map_with_path(first, batch)

    @jax.jit
    def compared(state: Any, batch: Any) -> Any:
        own = method.objective(state, batch)
        keys = jax.random.split(jax.random.key(0), DRAWS)
        vector = trees.floats(own.params)

        def loss(at: Any, key: jax.Array) -> jax.Array:
            return own.loss(trees.merge(own.params, at), key)

        def moved(number: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            metrics = method.step(_other_keys(state, number), batch)[1]
            return told(metrics), metrics.get("gradient_norm")

        def sloped(key: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
            value, gradient = jax.value_and_grad(loss)(vector, key)
            return value, trees.norm(gradient), gradient

        values, norms, gradients = jax.lax.map(sloped, keys)
        value, length, gradient = jax.tree.map(lambda x: x[0], (values, norms, gradients))
        # Short where the loss is steep: it changes by a hundredth then, nearly on a line.
        reach = 3e-3 * trees.norm(vector) / jnp.maximum(length, 1e-12)
        reach = jnp.minimum(reach, 1e-2 * jnp.abs(value) / jnp.maximum(length, 1e-12) ** 2)
        ends = jnp.stack([-reach, reach, jnp.zeros_like(reach)])
        along = jax.lax.map(lambda t: loss(trees.axpy(t, gradient, vector), keys[0]), ends)
        return jax.lax.map(moved, jnp.arange(DRAWS)), (values, norms), (along, reach)

    steps, losses, (along, reach) = jax.device_get(compared(state, batch))
    where = f"{stage.name}: {_check_means('loss', steps[0], losses[0], slack)}"
    if steps[1] is not None:
        where += f"; {_check_means('gradient norm', steps[1], losses[1], slack)}"
    value, length = losses[0][0], losses[1][0]
    assert np.isfinite(length), where
    np.testing.assert_allclose(along[2], value, rtol=1e-4, atol=1e-6, err_msg=where)
    if slope:
        found = (along[1] - along[0]) / (2 * reach * max(length, 1e-12))
        rounding = 4e-7 * max(abs(value), 1) / max(reach * length, 1e-12)
        np.testing.assert_allclose(found, length, rtol=0.03, atol=rounding, err_msg=where)


def _check_means(name: str, steps: np.ndarray, losses: np.ndarray, slack: float) -> str:
    """Two samples of one distribution have its mean, within their errors."""
    error = np.hypot(*(np.std(x, ddof=1) / DRAWS**0.5 for x in (steps, losses)))
    difference, size = abs(np.mean(steps) - np.mean(losses)), abs(np.mean(steps))
    where = f"{name} of steps {np.mean(steps)}, objective {np.mean(losses)} +- {error}"
    assert difference <= 4 * error + (1e-4 + slack) * size + 1e-6, where
    return where


def _other_keys(state: Any, number: jax.Array) -> Any:
    """The same state with other random numbers ahead of it."""

    def other(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
            return leaf
        each = jax.random.fold_in
        for _ in range(leaf.ndim):
            each = jax.vmap(each, (0, None))
        return each(leaf, number)

    return jax.tree.map(other, state)

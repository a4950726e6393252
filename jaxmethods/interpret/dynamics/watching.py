"""A training method that also says how its loss is curved and how noisy its gradients are.

    method = watched(method, every=200)          # a Method like any other, of the same results

It works for every method that says its loss (`Method.objective`). At every `every`-th step, before
it, gradients g_1, g_2 of two fresh batches and a Hessian product along a vector that is kept (power
iteration, warm, so that it follows the eigenvector) give

    sharpness        v . H v, which approaches the eigenvalue of largest magnitude
    gradient_noise   |g_1 - g_2|^2 / 2,  which is tr(Sigma) / B in the mean
    gradient_signal  g_1 . g_2,          which is |g|^2 in the mean

the last two averaged over rows; their ratio is the gradient noise scale in batches (McCandlish et
al. 2018). A step that is not due costs a predicate, also where seeds are mapped. Keys are the
monitor's own: what is trained is what is trained without it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.interpret.trees import Vector
from jaxmethods.method import Batch, Method, Metrics, Objective, State
from jaxmethods.numerics.keys import named
from jaxmethods.numerics.lazily import when

DECAY = 0.9
"""What a row of the running means keeps of the one before."""


class Row(NamedTuple):
    """The newest finite values, [] each; 0 before the first."""

    loss: jax.Array
    gradient_norm: jax.Array
    sharpness: jax.Array
    sharpness_residual: jax.Array
    """|H v - sharpness v|: how far the kept vector is from an eigenvector."""
    gradient_noise: jax.Array
    gradient_signal: jax.Array
    """May be negative where the gradient is lost in its noise."""
    weight_norm: jax.Array
    distance: jax.Array
    """From the start."""
    lost_rows: jax.Array
    """Rows that had a number that is not finite, and are not shown."""


class Watch(NamedTuple):
    """What the monitor keeps."""

    key: jax.Array
    step: jax.Array
    """[] int32."""
    direction: Vector
    """Unit vector of the power iteration."""
    start: Vector
    """Parameters at the start."""
    row: Row


class WatchedState(NamedTuple):
    """A method's state beside the monitor's."""

    own: State
    watch: Watch


@cache
def watched(method: Method, every: int) -> Method:
    """A method whose metrics also have a row of the monitor, `monitor_NAME`.

    Args:
        method: one with an objective.
        every: steps between two rows, the first one included.

    Returns:
        init and step on a `WatchedState`; the same method for the same arguments, so that what is
        compiled for it is used again.

    Raises:
        ValueError: a method without an objective, or a cadence below 1.
    """
    if method.objective is None:
        raise ValueError("monitor: the method doesn't say what it goes down on")
    if every < 1:
        raise ValueError(f"every: expected at least 1, got {every}")
    objective = method.objective

    def init(key: jax.Array, batch: Batch) -> WatchedState:
        own = method.init(key, batch)
        key, direction_key = jax.random.split(named(key, "monitor"))
        start = trees.floats(objective(own, batch).params)
        drawn = trees.random_like(direction_key, start, "normal")
        zero = jnp.zeros((), trees.dtype(start))
        row = Row(*[zero] * len(Row._fields))
        direction = trees.scale(1 / trees.norm(drawn), drawn)
        return WatchedState(own, Watch(key, jnp.int32(0), direction, start, row))

    def step(state: WatchedState, batch: Batch) -> tuple[WatchedState, Metrics]:
        watch = state.watch
        key = jax.random.fold_in(watch.key, watch.step)

        def look() -> tuple[Vector, Row]:
            return _look(objective(state.own, batch), watch, key)

        due = watch.step % every == 0
        direction, row = when(due, look, (watch.direction, watch.row))
        own, metrics = method.step(state.own, batch)
        after = watch._replace(step=watch.step + 1, direction=direction, row=row)
        shown = {f"monitor_{name}": value for name, value in row._asdict().items()}
        return WatchedState(own, after), {**metrics, **shown}

    return Method(init, step, lambda state, batch: objective(state.own, batch))


def _look(objective: Objective, watch: Watch, key: jax.Array) -> tuple[Vector, Row]:
    """The next direction, and the row."""
    params, vector = objective.params, trees.floats(objective.params)
    keys = jax.random.split(key)

    def gradient(at: Vector, key: jax.Array) -> tuple[Vector, jax.Array]:
        loss, slope = jax.value_and_grad(lambda v: objective.loss(trees.merge(params, v), key))(at)
        return slope, loss

    first, product, loss = jax.linearize(lambda at: gradient(at, keys[0]), vector, has_aux=True)
    second, _ = gradient(vector, keys[1])
    image = product(watch.direction)
    sharpness = trees.vdot(watch.direction, image)
    apart = jax.tree.map(jnp.subtract, first, second)
    begun, old = watch.step > 0, watch.row
    noise, signal = trees.vdot(apart, apart) / 2, trees.vdot(first, second)
    row = Row(
        loss,
        trees.norm(first),
        sharpness,
        trees.norm(trees.axpy(-sharpness, watch.direction, image)),
        jnp.where(begun, DECAY * old.gradient_noise + (1 - DECAY) * noise, noise),
        jnp.where(begun, DECAY * old.gradient_signal + (1 - DECAY) * signal, signal),
        trees.norm(vector),
        trees.norm(jax.tree.map(jnp.subtract, vector, watch.start)),
        old.lost_rows,
    )
    length = trees.norm(image)
    found = jnp.isfinite(length) & (length > 0)
    direction = jax.tree.map(
        lambda new, kept: jnp.where(found, new / jnp.where(found, length, 1), kept),
        image,
        watch.direction,
    )
    # A row that isn't finite must not end the training that it only watches.
    finite = jnp.all(jnp.isfinite(jnp.stack(row)))
    kept = old._replace(lost_rows=old.lost_rows + 1)
    return direction, jax.tree.map(lambda a, b: jnp.where(finite, a, b), row, kept)


def own_state(state: Any) -> State:
    """What the watched method alone would have."""
    return state.own

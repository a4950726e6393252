"""A model, its loss and its data: what every diagnostic takes.

    L(theta) = sum_i w_i l(f(theta, x_i), y_i) / sum_i w_i

    problem = make_problem(model.apply, cross_entropy, params, Data(images, labels))
    spectrum = slq.spectrum(operators.hessian(problem), key)

A `Problem` is a pytree whose callables are static, so a compiled diagnostic is reused for other
parameters and data of the same shapes. Data is one batch [N, ...] or microbatches [K, B, ...],
which are scanned: memory is that of one, numbers are the same. A `streams.Stream` fetches them from
the host while it is scanned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.interpret import trees
from jaxmethods.interpret.losses import Loss, as_loss
from jaxmethods.interpret.streams import Stream
from jaxmethods.interpret.trees import Vector
from jaxmethods.numerics.compiled import compiled_quickly
from jaxmethods.numerics.precision import wide

Apply = Callable[[Any, Any], jax.Array]


class Estimate(NamedTuple):
    """A number with its error."""

    value: jax.Array
    error: jax.Array
    """Standard error; NaN for one sample, which has no spread, 0 for what is exact."""
    samples: jax.Array
    """How many independent samples it is made of."""


class Data(NamedTuple):
    """Examples; every leaf has a leading axis N, or [K, B] as microbatches."""

    inputs: Any
    targets: Any
    weight: jax.Array | None = None
    """[N] or [K, B]: 0 for padding; None: all one."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Problem:
    """What is diagnosed; made by `make_problem`."""

    apply: Apply = field(metadata={"static": True})
    """(params, inputs [N, ...]) -> outputs [N, ...]; examples don't see each other."""
    loss: Loss = field(metadata={"static": True})
    params: Any
    data: Any
    """`Data`, or a `streams.Stream` of it."""
    microbatched: bool = field(default=False, metadata={"static": True})

    @property
    def floats(self) -> Vector:
        """The parameters that are differentiated, as a vector."""
        return trees.floats(self.params)

    def at(self, vector: Vector) -> Problem:
        """The problem with other parameters, where the vector has some."""
        return replace(self, params=trees.merge(self.params, vector))

    def outputs(self, vector: Vector, inputs: Any) -> jax.Array:
        """[N, ...] in float32 at least: sums of losses in half precision stop growing."""
        return wide(self.apply(trees.merge(self.params, vector), inputs))

    def losses(self, vector: Vector, batch: Data) -> jax.Array:
        """Per example [N], without weights."""
        return self.loss.value(self.outputs(vector, batch.inputs), batch.targets)

    def weights(self, batch: Data, dtype: Any) -> jax.Array:
        """[N]: ones where none are given, 0 for an example that has no loss."""
        own = jnp.ones(number_of_examples(batch)) if batch.weight is None else batch.weight
        if self.loss.counted is not None:
            own = jnp.where(self.loss.counted(batch.targets), own, 0)
        return own.astype(dtype)


def make_problem(
    apply: Apply,
    loss: Loss | Callable[[Any, Any], jax.Array],
    params: Any,
    data: Data | Stream | tuple[Any, Any],
    microbatched: bool = False,
) -> Problem:
    """Checks what can be seen without computing anything, and makes a problem.

    Args:
        apply: (params, inputs [N, ...]) -> outputs [N, ...], pure; keep one object, since another
            lambda is another program.
        loss: a `Loss`, or (outputs, targets) -> losses [N].
        params: any pytree. Leaves that are not floating, and None, are passed on and stay.
        data: `Data`, or (inputs, targets), or a `streams.Stream`, which is always microbatched.
        microbatched: the leaves of `data` are [K, B, ...].

    Returns:
        The problem.

    Raises:
        ValueError: what is wrong with which argument: no floating parameters, data of different
            lengths, an `apply` that returns a state beside its outputs (BatchNorm in training
            mode) or not one row for each example, a loss that is not one number an example.
    """
    streamed = isinstance(data, Stream)
    data = data if isinstance(data, Data | Stream) else Data(*data)
    microbatched = microbatched or streamed
    problem = Problem(apply, as_loss(loss), params, data, microbatched)
    if not jax.tree.leaves(problem.floats):
        raise ValueError("params: expected at least one floating leaf, got none")
    batch = first_batch(problem)
    _check_lengths(batch if isinstance(data, Stream) else data, microbatched and not streamed)
    count = number_of_examples(batch)
    outputs = jax.eval_shape(apply, params, batch.inputs)
    if isinstance(outputs, tuple | list | dict):
        raise ValueError(
            f"apply: expected one array of outputs, got a {type(outputs).__name__}; a model that "
            "returns a state beside its outputs (BatchNorm in training mode) couples examples: "
            "use its inference statistics"
        )
    if not outputs.shape or outputs.shape[0] != count:
        raise ValueError(
            f"apply: expected outputs with a leading axis of {count} examples, got {outputs.shape}"
        )
    losses = jax.eval_shape(problem.loss.value, outputs, batch.targets)
    if getattr(losses, "shape", None) != (count,):
        shape = getattr(losses, "shape", type(losses).__name__)
        raise ValueError(f"loss: expected one number for each example, ({count},), got {shape}")
    return problem


def _check_lengths(data: Data, microbatched: bool) -> None:
    axes = 2 if microbatched else 1
    leaves = jax.tree_util.tree_leaves_with_path(data)
    lengths = {jax.tree_util.keystr(path): np.shape(leaf)[:axes] for path, leaf in leaves}
    if len(set(lengths.values())) != 1 or len(next(iter(lengths.values()))) != axes:
        raise ValueError(
            f"data: expected {axes} equal leading axes in every leaf, got "
            + ", ".join(f"{name}: {shape}" for name, shape in lengths.items())
        )
    if 0 in next(iter(lengths.values())):
        raise ValueError("data: expected at least one example, got none")


def check_independent(problem: Problem, tolerance: float = 1e-3) -> None:
    """Refuses a model whose examples see each other, such as BatchNorm in training mode or dropout.

    The outputs of the last example are computed with and without the others: random numbers of a
    fixed key would be the same for the first. It computes, so it is no part of `make_problem`.

    Args:
        problem: what to look at; its first microbatch is used.
        tolerance: difference allowed, relative to the largest output.

    Raises:
        ValueError: they differ.
    """
    streamed = isinstance(problem.data, Stream)
    inputs = (problem.data.fetch(0) if streamed else first_batch(problem)).inputs
    together, alone = _last_output(problem.apply, problem.params, inputs)
    difference = float(jnp.max(jnp.abs(together - alone)))
    if not difference <= tolerance * max(float(jnp.max(jnp.abs(together))), 1e-30):
        raise ValueError(
            "apply: expected outputs of an example that don't depend on the others, got a "
            f"difference of {difference:.2g}; turn off dropout and use BatchNorm's inference "
            "statistics"
        )


@compiled_quickly("apply")
def _last_output(apply: Apply, params: Any, inputs: Any) -> tuple[jax.Array, jax.Array]:
    """The last example's outputs, with and without the others."""
    return apply(params, inputs)[-1:], apply(params, jax.tree.map(lambda x: x[-1:], inputs))


def first_batch(problem: Problem) -> Data:
    """The first microbatch; of a stream its shapes."""
    if isinstance(problem.data, Stream):
        return problem.data.like
    return jax.tree.map(lambda x: x[0], problem.data) if problem.microbatched else problem.data


def map_batches(problem: Problem, function: Callable[[Data], Any]) -> Any:
    """What a function makes of every microbatch, stacked [K, ...], one at a time."""
    if isinstance(problem.data, Stream):
        places = jnp.arange(problem.data.batches)
        return jax.lax.map(lambda k: function(problem.data.at(k)), places)
    return jax.lax.map(function, problem.data)


def number_of_examples(batch: Data) -> int:
    """N of one batch."""
    return jax.tree.leaves(batch)[0].shape[0]


def total_weight(problem: Problem) -> jax.Array:
    """Sum of the weights of all examples, []."""
    kind = trees.dtype(problem.floats)
    if not problem.microbatched:
        return jnp.sum(problem.weights(problem.data, kind))
    return jnp.sum(map_batches(problem, lambda batch: jnp.sum(problem.weights(batch, kind))))


def one_batch(problem: Problem) -> Problem:
    """The same problem with its microbatches joined."""
    if not problem.microbatched:
        return problem
    whole = map_batches(problem, lambda batch: batch)  # [K, B, ...]
    data = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), whole)
    return replace(problem, data=data, microbatched=False)


def mean_over(problem: Problem, total: Callable[[Data], Any]) -> Any:
    """`total(batch)`, a pytree of weighted sums, added over microbatches, over the total weight."""
    whole = total_weight(problem)
    if not problem.microbatched:
        return jax.tree.map(lambda leaf: leaf / whole, total(problem.data))
    shapes = jax.eval_shape(total, first_batch(problem))
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(before: Any, batch: Data) -> tuple[Any, None]:
        return trees.add(before, total(batch)), None

    def fetch(before: Any, k: jax.Array) -> tuple[Any, None]:
        return add(before, problem.data.at(k))

    if isinstance(problem.data, Stream):
        sums, _ = jax.lax.scan(fetch, start, jnp.arange(problem.data.batches))
    else:
        sums, _ = jax.lax.scan(add, start, problem.data)
    return jax.tree.map(lambda leaf: leaf / whole, sums)


def mean_loss(problem: Problem, vector: Vector | None = None) -> jax.Array:
    """The mean loss L.

    Args:
        problem: what is evaluated.
        vector: other parameters; None: the problem's own.

    Returns:
        [].
    """
    vector = problem.floats if vector is None else vector
    return mean_over(problem, lambda batch: _weighted(problem, vector, batch))


def _weighted(problem: Problem, vector: Vector, batch: Data) -> jax.Array:
    losses = problem.losses(vector, batch)
    return jnp.sum(problem.weights(batch, losses.dtype) * losses)


def mean_gradient(problem: Problem, vector: Vector | None = None) -> Vector:
    """The gradient of the mean loss.

    Args:
        problem: what is differentiated.
        vector: other parameters; None: the problem's own.

    Returns:
        A vector.
    """
    vector = problem.floats if vector is None else vector
    gradient = jax.grad(lambda vector, batch: _weighted(problem, vector, batch))
    return mean_over(problem, lambda batch: gradient(vector, batch))

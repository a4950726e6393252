"""The measures of a report, and what each does not prove.

`MEASURES` is the declaration; `report` makes rows of it, with the programs of `programs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.interpret import programs, trees
from jaxmethods.interpret.curvature import slq
from jaxmethods.interpret.estimates import exact
from jaxmethods.interpret.honesty import calibration
from jaxmethods.interpret.kernels import kernel_statistics
from jaxmethods.interpret.privacy import membership
from jaxmethods.interpret.problem import Estimate, Problem, first_batch, one_batch
from jaxmethods.interpret.programs import Effort, Predicted
from jaxmethods.numerics.compiled import compiled

LEVELS = {
    "quick": Effort(24, 16, 2, 32),
    "standard": Effort(64, 64, 8, 128),
    "full": Effort(96, 256, 16, 512),
}
Compute = Callable[[Problem, Problem, jax.Array, Effort], Estimate]


Kind = Literal["anything", "few outputs", "logits", "classes"]
"""What a problem is: has at most `MOST_OUTPUTS` outputs an example, logits [N, ..., C] and integer
targets [N, ...], or one label an example."""
MOST_OUTPUTS = 64
"""The tangent kernel takes a product for each output."""
DRAWS = 50
"""Resamplings of the bootstrap."""


class Measure(NamedTuple):
    """One row of the table."""

    title: str
    section: str
    """Where the survey speaks of it."""
    compute: Compute
    """(problem, held-out problem of the same parameters, key, effort) -> estimate []."""
    caveat: str
    """What it does not prove."""
    needs: Kind = "anything"
    """What kind of problem has it."""


@compiled()
def _weighted_mean(values: jax.Array, weight: jax.Array) -> Estimate:
    share = weight / jnp.sum(weight)
    mean = jnp.sum(share * values)
    error = jnp.sqrt(jnp.sum((share * (values - mean)) ** 2))
    return Estimate(mean, error, jnp.sum(weight > 0))


def _train_loss(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return _weighted_mean(*programs.losses(problem))


def _gap(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    own, other = (_weighted_mean(*programs.losses(one)) for one in (problem, held))
    error = jnp.sqrt(own.error**2 + other.error**2)
    return Estimate(other.value - own.value, error, other.samples)


def _accuracy(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return _share_right(programs.predicted(held))


@compiled()
def _share_right(found: Predicted) -> Estimate:
    weight = jnp.sum(found.weight, axis=1)
    share = jnp.where(weight > 0, weight, 1)
    return _weighted_mean(jnp.sum(found.weight * found.right, axis=1) / share, weight)


def _margin(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    found = programs.predicted(problem)
    margins = jnp.where(found.weight > 0, found.margin, jnp.nan)
    return exact(jnp.nanquantile(margins, 0.1))


def _calibration(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return _calibration_error(programs.predicted(held), key)


@compiled()
def _calibration_error(found: Predicted, key: jax.Array) -> Estimate:
    def error(weight: jax.Array) -> jax.Array:
        return calibration.binned(found.confidence, found.right, weight).expected_error

    def resampled(key: jax.Array) -> jax.Array:
        # Examples are drawn again, each with all of its targets, which are not independent.
        rows = jax.random.randint(key, (len(found.weight),), 0, len(found.weight))
        times = jnp.bincount(rows, length=len(found.weight))
        return error(found.weight * times[:, None])

    draws = jax.lax.map(resampled, jax.random.split(key, DRAWS), batch_size=10)
    return Estimate(error(found.weight), jnp.std(draws, ddof=1), jnp.asarray(len(found.weight)))


def _membership(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    def of_examples(one: Problem) -> np.ndarray:
        losses, weight = programs.losses(one)
        return np.asarray(losses)[np.asarray(weight) > 0]  # padding is no member of anything

    own, other = of_examples(problem), of_examples(held)
    member = jnp.append(jnp.ones(len(own)), jnp.zeros(len(other)))
    return membership.auc(-jnp.asarray(np.append(own, other)), member)


def _gradient_norm(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return exact(programs.gradients(problem).norm)


def _noise_scale(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return exact(programs.gradients(problem).noise_scale)


def _largest(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return _outermost(programs.spectrum(problem, key, effort), 1.0)


def _smallest(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return _outermost(programs.spectrum(problem, key, effort), -1.0)


@compiled()
def _outermost(found: slq.Spectrum, sign: jax.Array | float) -> Estimate:
    """The largest node (-1: the smallest) with its residual, which is a bound up to rounding."""
    place = jnp.argmax(jnp.where(found.weights > 0, sign * found.nodes, -jnp.inf))
    value, residual = found.nodes.reshape(-1)[place], found.residuals.reshape(-1)[place]
    rounding = jnp.finfo(value.dtype).eps * jnp.abs(value)
    return Estimate(value, jnp.maximum(residual, rounding), jnp.asarray(1))


def _trace(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return programs.trace(problem, key, effort, "hessian")


def _ggn_trace(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return programs.trace(problem, key, effort, "ggn")


def _negative(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    found = programs.spectrum(problem, key, effort)
    # Rounding puts null directions on either side of zero: they are not counted as negative.
    floor = -1e-4 * jnp.max(jnp.abs(found.nodes))
    count = slq.spectral_sum(found, lambda t: (t < floor).astype(t.dtype))
    return Estimate(count.value / found.dimension, count.error / found.dimension, count.samples)


def _sam(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return exact(programs.ascent(problem))


def _flatness(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    found = programs.flatness(problem, key, effort)
    # The error of sigma, from that of the rise, which grows about as its square.
    return Estimate(found.sigma, found.rise.error / 0.1 * found.sigma / 2, found.rise.samples)


def kernel(problem: Problem, effort: Effort) -> jax.Array:
    """The traced tangent kernel of the first examples; of their losses where outputs are many."""
    if "few outputs" not in kinds(problem):
        return programs.gradient_kernel(problem, _first(problem, effort))
    return programs.kernel(problem, _first(problem, effort))


def _first(problem: Problem, effort: Effort) -> np.ndarray:
    """Places of the first examples that count: padding has no tangent."""
    return np.flatnonzero(np.asarray(programs.weights(problem)) > 0)[: effort.kernel]


def _kernel_rank(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return _rank(kernel(problem, effort))


def _gradient_rank(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return _rank(programs.gradient_kernel(problem, _first(problem, effort)))


@compiled()
def _rank(gram: jax.Array) -> Estimate:
    return exact(kernel_statistics.kernel_statistics(gram).effective_rank)


def _alignment(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    labels = one_batch(problem).data.targets[_first(problem, effort)]
    return exact(kernel_statistics.label_alignment(kernel(problem, effort), labels, True))


def _weight_norm(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return exact(jax.jit(trees.norm)(problem.floats))


MEASURES: Mapping[str, Measure] = {
    "train_loss": Measure("loss on training data", "3", _train_loss, "anything of other data"),
    "gap": Measure(
        "held-out loss minus training loss", "3", _gap, "the gap on another distribution"
    ),
    "accuracy": Measure("held-out accuracy", "3", _accuracy, "accuracy after a shift", "logits"),
    "margin": Measure("0.1 quantile of margins", "3", _margin, "a bound of the risk", "logits"),
    "weight_norm": Measure("norm of the parameters", "3", _weight_norm, "a bound of the risk"),
    "gradient_norm": Measure("norm of the gradient", "5", _gradient_norm, "a minimum"),
    "noise_scale": Measure(
        "gradient noise scale, examples", "5", _noise_scale, "the best batch size later on"
    ),
    "largest_eigenvalue": Measure(
        "largest eigenvalue of the Hessian", "3", _largest, "generalization: it has a scale"
    ),
    "smallest_eigenvalue": Measure(
        "smallest eigenvalue of the Hessian", "3", _smallest, "that descent would find it"
    ),
    "trace": Measure("trace of the Hessian", "3", _trace, "generalization: it has a scale"),
    "ggn_trace": Measure("trace of the Gauss-Newton matrix", "3", _ggn_trace, "tr H: they differ"),
    "negative_share": Measure(
        "share of negative curvature", "3", _negative, "a saddle: null directions are cut off"
    ),
    "sam": Measure("rise of the loss at distance 0.05", "3", _sam, "the largest rise"),
    "flatness": Measure(
        "noise that raises the loss by 0.1", "3", _flatness, "generalization: it has a scale"
    ),
    "kernel_rank": Measure(
        "effective rank of the tangent kernel",
        "3",
        _kernel_rank,
        "that training is lazy",
        "few outputs",
    ),
    "gradient_rank": Measure(
        "effective rank of the examples' gradients",
        "5",
        _gradient_rank,
        "a dimension",
    ),
    "alignment": Measure(
        "centered alignment of kernel and labels",
        "3",
        _alignment,
        "that training is lazy",
        "classes",
    ),
    "calibration": Measure(
        "expected calibration error", "6", _calibration, "calibration within a bin", "logits"
    ),
    "membership": Measure(
        "AUC of membership by loss", "6", _membership, "safety from better attacks"
    ),
}


def kinds(problem: Problem) -> frozenset[Kind]:
    """Everything that a problem is.

    Args:
        problem: only its shapes are looked at.

    Returns:
        Some of `Kind`.
    """
    batch = jax.eval_shape(first_batch, problem)
    outputs, targets = jax.eval_shape(problem.apply, problem.params, batch.inputs), batch.targets
    found: set[Kind] = {"anything"}
    if np.prod(outputs.shape[1:]) <= MOST_OUTPUTS:
        found.add("few outputs")
    whole = hasattr(targets, "dtype") and jnp.issubdtype(targets.dtype, jnp.integer)
    if whole and outputs.shape[:-1] == targets.shape:
        found.add("logits")
        if targets.ndim == 1:
            found.add("classes")
    return frozenset(found)

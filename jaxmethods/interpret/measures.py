"""The measures of a report: one compiled program each, and what each does not prove.

`MEASURES` is the declaration; `report` makes rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.interpret import trees
from jaxmethods.interpret.curvature import eigenpairs, hutchinson, operators, slq
from jaxmethods.interpret.dynamics import sharpness
from jaxmethods.interpret.estimates import exact
from jaxmethods.interpret.generalization import norms
from jaxmethods.interpret.gradients import noise_scale
from jaxmethods.interpret.honesty import calibration
from jaxmethods.interpret.kernels import kernel_statistics, ntk
from jaxmethods.interpret.privacy import membership
from jaxmethods.interpret.problem import (
    Data,
    Estimate,
    Problem,
    first_batch,
    map_batches,
    mean_gradient,
    one_batch,
    weights,
)
from jaxmethods.numerics.compiled import compiled


class Effort(NamedTuple):
    """How much a level spends; hashable, hence static."""

    steps: int
    """Steps of a Lanczos recurrence."""
    probes: int
    """Random vectors of a trace."""
    spectra: int
    """Probes of spectral densities."""
    kernel: int
    """Examples of the tangent kernel."""


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


def _losses(problem: Problem) -> tuple[jax.Array, jax.Array]:
    joined = one_batch(problem)
    losses = joined.losses(joined.floats, joined.data)
    return losses, weights(joined.data, losses.dtype)


def _weighted_mean(values: jax.Array, weight: jax.Array) -> Estimate:
    share = weight / jnp.sum(weight)
    mean = jnp.sum(share * values)
    error = jnp.sqrt(jnp.sum((share * (values - mean)) ** 2))
    return Estimate(mean, error, jnp.sum(weight > 0))


@compiled("effort")
def _train_loss(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return _weighted_mean(*_losses(problem))


@compiled("effort")
def _gap(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    own, other = _weighted_mean(*_losses(problem)), _weighted_mean(*_losses(held))
    error = jnp.sqrt(own.error**2 + other.error**2)
    return Estimate(other.value - own.value, error, other.samples)


class Predicted(NamedTuple):
    """What a classifier says of every target, [N, T]: T targets an example."""

    margin: jax.Array
    """Own logit minus the largest other one."""
    confidence: jax.Array
    right: jax.Array
    weight: jax.Array
    """The example's, over the number of its targets; 0 for those that don't count."""


def predicted(problem: Problem) -> Predicted:
    """Margins and probabilities of a classifier, microbatch by microbatch.

    Args:
        problem: logits [N, ..., C] and integer targets [N, ...].

    Returns:
        [N, T] each; logits of one microbatch are in memory.
    """

    def of_batch(batch: Data) -> Predicted:
        logits = problem.outputs(problem.floats, batch.inputs)
        logits = logits.reshape(len(logits), -1, logits.shape[-1])  # [B, T, C]
        targets = jnp.reshape(batch.targets, logits.shape[:2])
        p = jax.nn.softmax(logits, axis=-1)
        counted = (targets >= 0).astype(p.dtype)
        share = counted / jnp.maximum(jnp.sum(counted, axis=1, keepdims=True), 1)
        return Predicted(
            norms.margins(logits, jnp.maximum(targets, 0)),
            jnp.max(p, axis=-1),
            (jnp.argmax(logits, axis=-1) == targets).astype(p.dtype),
            share * weights(batch, p.dtype)[:, None],
        )

    if not problem.microbatched:
        return of_batch(problem.data)
    found = map_batches(problem, of_batch)
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), found)  # [K B, T]


@compiled("effort")
def _accuracy(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    found = predicted(held)
    weight = jnp.sum(found.weight, axis=1)
    share = jnp.where(weight > 0, weight, 1)
    return _weighted_mean(jnp.sum(found.weight * found.right, axis=1) / share, weight)


@compiled("effort")
def _margin(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    found = predicted(problem)
    margins = jnp.where(found.weight > 0, found.margin, jnp.nan)
    return exact(jnp.nanquantile(margins, 0.1))


@compiled("effort")
def _calibration(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    found = predicted(held)

    def error(weight: jax.Array) -> jax.Array:
        return calibration.binned(found.confidence, found.right, weight).expected_error

    def resampled(key: jax.Array) -> jax.Array:
        # Examples are drawn again, each with all of its targets, which are not independent.
        rows = jax.random.randint(key, (len(found.weight),), 0, len(found.weight))
        times = jnp.bincount(rows, length=len(found.weight))
        return error(found.weight * times[:, None])

    draws = jax.lax.map(resampled, jax.random.split(key, DRAWS), batch_size=10)
    return Estimate(error(found.weight), jnp.std(draws, ddof=1), jnp.asarray(len(found.weight)))


@compiled("effort")
def _membership(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    own, other = _losses(problem)[0], _losses(held)[0]
    member = jnp.append(jnp.ones(len(own)), jnp.zeros(len(other)))
    return membership.auc(-jnp.append(own, other), member)


@compiled("effort")
def _gradient_norm(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return exact(trees.norm(mean_gradient(problem)))


@compiled("effort")
def _noise_scale(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return exact(noise_scale.noise_scale(problem).unbiased)


@compiled("effort")
def _largest(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    found = eigenpairs.eigenpairs(operators.hessian(problem), key, 1, effort.steps)
    return _eigenvalue(found)


@compiled("effort")
def _smallest(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    operator = operators.hessian(problem)
    found = eigenpairs.eigenpairs(operator, key, 1, effort.steps, "smallest")
    return _eigenvalue(found)


def _eigenvalue(found: eigenpairs.Eigenpairs) -> Estimate:
    """The first one with its residual, which is a bound up to rounding."""
    value = found.values[0]
    rounding = jnp.finfo(value.dtype).eps * jnp.abs(value)
    return Estimate(value, jnp.maximum(found.residuals[0], rounding), jnp.asarray(1))


@compiled("effort")
def _trace(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return hutchinson.trace(operators.hessian(problem), key, effort.probes)


@compiled("effort")
def _ggn_trace(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return hutchinson.trace(operators.ggn(problem), key, effort.probes)


@compiled("effort")
def _negative(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    found = slq.spectrum(operators.hessian(problem), key, effort.steps, effort.spectra)
    # Rounding puts null directions on either side of zero: they are not counted as negative.
    floor = -1e-4 * jnp.max(jnp.abs(found.nodes))
    count = slq.spectral_sum(found, lambda t: (t < floor).astype(t.dtype))
    return Estimate(count.value / found.dimension, count.error / found.dimension, count.samples)


@compiled("effort")
def _sam(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return exact(sharpness.ascent_sharpness(problem, 0.05))


@compiled("effort")
def _flatness(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    found = sharpness.pac_bayes_flatness(problem, key, draws=effort.probes, steps=12)
    # The error of sigma, from that of the rise, which grows about as its square.
    return Estimate(found.sigma, found.rise.error / 0.1 * found.sigma / 2, found.rise.samples)


def kernel(problem: Problem, effort: Effort) -> jax.Array:
    """The traced tangent kernel of the first examples; of their losses where outputs are many."""
    if "few outputs" not in kinds(problem):
        return gradient_kernel(problem, effort)
    inputs = one_batch(problem).data.inputs
    rows = jax.tree.map(lambda x: x[: effort.kernel], inputs)
    return ntk.ntk(problem.apply, problem.params, rows, method="products", chunk=8)


def gradient_kernel(problem: Problem, effort: Effort) -> jax.Array:
    """Inner products of the gradients of the first examples' losses, [n, n]."""
    joined = one_batch(problem)
    rows = jax.tree.map(lambda x: x[: effort.kernel], joined.data)
    return ntk.of_losses(replace(joined, data=rows), chunk=8)


@compiled("effort")
def _kernel_rank(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return exact(kernel_statistics.kernel_statistics(kernel(problem, effort)).effective_rank)


@compiled("effort")
def _gradient_rank(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    gram = gradient_kernel(problem, effort)
    return exact(kernel_statistics.kernel_statistics(gram).effective_rank)


@compiled("effort")
def _alignment(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    labels = one_batch(problem).data.targets[: effort.kernel]
    return exact(kernel_statistics.label_alignment(kernel(problem, effort), labels, True))


@compiled("effort")
def _weight_norm(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return exact(trees.norm(problem.floats))


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

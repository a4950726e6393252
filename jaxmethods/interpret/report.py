"""A table of diagnostics of a model: each row has its error and says what it does not prove.

    rows = report(problem, held_out, key, level="quick")
    print(to_markdown(rows))

`MEASURES` is the table's declaration. Each measure is one compiled program of the problem, so that
a report of other parameters of the same shapes compiles nothing, and a run can keep finished rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
    Estimate,
    Problem,
    mean_gradient,
    one_batch,
    weights,
)
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.keys import named
from jaxmethods.numerics.statistics import markdown_table


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


class Measure(NamedTuple):
    """One row of the table."""

    title: str
    section: str
    """Where the survey speaks of it."""
    compute: Compute
    """(problem, held-out problem of the same parameters, key, effort) -> estimate []."""
    caveat: str
    """What it does not prove."""
    classifier: bool = False
    """It needs logits [N, C] and integer labels [N]."""


class Row(NamedTuple):
    """A measure's value."""

    title: str
    section: str
    value: float
    error: float
    """Standard error or bound; 0 where the value is exact on its data, NaN where unknown."""
    caveat: str


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


@compiled("effort")
def _accuracy(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    data = one_batch(held).data
    right = jnp.argmax(held.outputs(held.floats, data.inputs), axis=-1) == data.targets
    return _weighted_mean(right.astype(jnp.float32), weights(data, jnp.float32))


@compiled("effort")
def _margin(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    data = one_batch(problem).data
    own = norms.margins(problem.outputs(problem.floats, data.inputs), data.targets)
    return exact(jnp.quantile(own, 0.1))


@compiled("effort")
def _calibration(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    data = one_batch(held).data
    logits = held.outputs(held.floats, data.inputs)

    def resampled(key: jax.Array) -> jax.Array:
        rows = jax.random.randint(key, data.targets.shape, 0, len(data.targets))
        return calibration.calibration(logits[rows], data.targets[rows]).expected_error

    draws = jax.lax.map(resampled, jax.random.split(key, 50), batch_size=10)
    whole = calibration.calibration(logits, data.targets).expected_error
    return Estimate(whole, jnp.std(draws, ddof=1), jnp.asarray(len(data.targets)))


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
    return Estimate(found.values[0], found.residuals[0], jnp.asarray(1))


@compiled("effort")
def _smallest(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    operator = operators.hessian(problem)
    found = eigenpairs.eigenpairs(operator, key, 1, effort.steps, "smallest")
    return Estimate(found.values[0], found.residuals[0], jnp.asarray(1))


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


def _kernel(problem: Problem, effort: Effort) -> jax.Array:
    inputs = one_batch(problem).data.inputs
    rows = jax.tree.map(lambda x: x[: effort.kernel], inputs)
    return ntk.ntk(problem.apply, problem.params, rows, method="products", chunk=8)


@compiled("effort")
def _kernel_rank(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return exact(kernel_statistics.kernel_statistics(_kernel(problem, effort)).effective_rank)


@compiled("effort")
def _alignment(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    labels = one_batch(problem).data.targets[: effort.kernel]
    return exact(kernel_statistics.label_alignment(_kernel(problem, effort), labels, True))


@compiled("effort")
def _weight_norm(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Estimate:
    return exact(trees.norm(problem.floats))


MEASURES: Mapping[str, Measure] = {
    "train_loss": Measure("loss on training data", "3", _train_loss, "anything of other data"),
    "gap": Measure(
        "held-out loss minus training loss", "3", _gap, "the gap on another distribution"
    ),
    "accuracy": Measure("held-out accuracy", "3", _accuracy, "accuracy after a shift", True),
    "margin": Measure("0.1 quantile of margins", "3", _margin, "a bound of the risk", True),
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
        "effective rank of the tangent kernel", "3", _kernel_rank, "that training is lazy"
    ),
    "alignment": Measure(
        "centered alignment of kernel and labels", "3", _alignment, "that training is lazy", True
    ),
    "calibration": Measure(
        "expected calibration error", "6", _calibration, "calibration within a bin", True
    ),
    "membership": Measure(
        "AUC of membership by loss", "6", _membership, "safety from better attacks"
    ),
}


def is_classifier(problem: Problem) -> bool:
    """Whether outputs are logits [N, C] of integer labels [N]."""
    data = one_batch(problem).data
    outputs = jax.eval_shape(problem.apply, problem.params, data.inputs)
    targets = data.targets
    whole = hasattr(targets, "dtype") and jnp.issubdtype(targets.dtype, jnp.integer)
    return whole and outputs.ndim == 2 and targets.ndim == 1


def measures_of(problem: Problem) -> dict[str, Measure]:
    """The rows that a problem has.

    Args:
        problem: a classifier has more of them.

    Returns:
        Name -> measure.
    """
    every = is_classifier(problem)
    return {name: own for name, own in MEASURES.items() if every or not own.classifier}


def measure_row(
    name: str, problem: Problem, held_out: Problem, key: jax.Array, level: str = "standard"
) -> Row:
    """One row, computed.

    Args:
        name: of `MEASURES`.
        problem: the model and its training data.
        held_out: the same model and other data.
        key: of the whole report; each row has its own by its name.
        level: "quick", "standard" or "full".

    Returns:
        The row, of host numbers.

    Raises:
        ValueError: an unknown name or level.
    """
    if name not in MEASURES:
        raise ValueError(f"name: expected one of {', '.join(MEASURES)}, got {name!r}")
    if level not in LEVELS:
        raise ValueError(f"level: expected one of {', '.join(LEVELS)}, got {level!r}")
    measure = MEASURES[name]
    found = measure.compute(problem, held_out, named(key, name), LEVELS[level])
    return Row(
        measure.title, measure.section, float(found.value), float(found.error), measure.caveat
    )


def report(
    problem: Problem, held_out: Problem, key: jax.Array, level: str = "standard"
) -> dict[str, Row]:
    """All rows of a model.

    Args:
        problem: the model and its training data.
        held_out: the same model and other data.
        key: of every probe and draw.
        level: "quick", "standard" or "full".

    Returns:
        Name -> row, in the order of `MEASURES`.
    """
    names = measures_of(problem)
    return {name: measure_row(name, problem, held_out, key, level) for name in names}


def to_markdown(rows: Mapping[str, Row]) -> str:
    """A table of rows: measure, value and error, section, what it does not prove."""
    lines = [(row.title, _number(row), row.section, row.caveat) for row in rows.values()]
    return markdown_table(["measure", "value", "section", "does not prove"], lines)


def _number(row: Row) -> str:
    if np.isnan(row.value):
        return "none: too noisy to tell"
    return f"{row.value:.4g}" if row.error == 0 else f"{row.value:.4g} ± {row.error:.2g}"


def to_json(rows: Mapping[str, Row]) -> dict[str, Any]:
    """Rows as plain values; what is not finite is None."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return {
        name: {field: plain(value) for field, value in row._asdict().items()}
        for name, row in rows.items()
    }

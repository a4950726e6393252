r"""Linear classifiers of frozen features, a whole grid of penalties in one program.

    min_{W, b}  mean_i CE(W^T x_i + b, y_i) + lam/2 |W|^2

`probe_lbfgs` solves it for many lam at once, to convergence (`softmax_path`): every entry of the
grid is a column of the same products. scikit-learn's C is 1 / (lam n).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import wide
from jaxmethods.numerics.predictions import labeled, right
from jaxmethods.numerics.softmax_path import Probe, minimize_path

EPSILON = 1e-6


class Scaling(NamedTuple):
    """What makes features comparable: less `mean`, over `scale`."""

    mean: jax.Array
    """[D]"""
    scale: jax.Array
    """[D]"""

    def __call__(self, features: jax.Array) -> jax.Array:
        return (features - self.mean) / self.scale


def standardizer(features: jax.Array) -> Scaling:
    """What BatchNorm without its affine map does: mean and sqrt(biased variance + 1e-6).

    Args:
        features: [N, D].

    Returns:
        A scaling of features of that width.
    """
    features = wide(features)
    centered = features - jnp.mean(features, axis=0)
    scale = jnp.sqrt(jnp.mean(jnp.square(centered), axis=0) + EPSILON)
    return Scaling(jnp.mean(features, axis=0), scale)


def no_scaling(features: jax.Array) -> Scaling:
    """Features [N, D] as they are."""
    width = features.shape[1]
    return Scaling(jnp.zeros(width, features.dtype), jnp.ones(width, features.dtype))


@compiled("classes", "most_steps")
def probe_lbfgs(
    features: jax.Array,
    labels: jax.Array,
    lams: jax.Array,
    *,
    classes: int,
    tolerance: float = 1e-6,
    most_steps: int = 500,
) -> Probe:
    """The optimum for every lam, by L-BFGS.

    Args:
        features: [N, D], standardized or not.
        labels: [N] integers; a row whose label is no class, such as -1, doesn't count.
        lams: [G] penalties, positive.
        classes: C; static.
        tolerance: of the largest entry of the gradient, in coordinates that are rotated so that
            they hardly depend on each other.
        most_steps: of each; static.

    Returns:
        The classifiers.
    """
    features = wide(features)
    targets = jax.nn.one_hot(labels, classes, dtype=features.dtype)
    own = lams.astype(features.dtype)
    return minimize_path(features, targets, own, tolerance, most_steps)


def logits(probe: Probe, features: jax.Array) -> jax.Array:
    """What every classifier says of rows of features.

    Args:
        probe: G classifiers.
        features: [N, D], scaled as those it learned from.

    Returns:
        [G, N, C].
    """
    return jnp.einsum("nd,gdc->gnc", features, probe.weight) + probe.bias[:, None]


def accuracies(probe: Probe, features: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of rows that every classifier gets right.

    Args:
        probe: G classifiers.
        features: [N, D], scaled as those it learned from.
        labels: [N]; a row whose label is no class, such as -1, doesn't count.

    Returns:
        [G] float32; 0 for a classifier that diverged.
    """
    there = labeled(labels, probe.bias.shape[1])
    hits = right(logits(probe, features), labels)
    return jnp.mean(hits, axis=-1, dtype=jnp.float32, where=there)

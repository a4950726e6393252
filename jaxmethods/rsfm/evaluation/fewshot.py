"""Probes of frozen features with few labels a class, for several draws of the labeled images.

Draws are balanced: as many images of every class. Nothing is left to choose a penalty by, so it is
an argument (Wang et al. 2019, SimpleShot, arXiv 1911.04623, draws and reports the same way).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.errors import DataError
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.linear_probe import logits, probe_lbfgs, standardizer
from jaxmethods.numerics.predictions import chosen

LAM = 0.01


def draw_shots(key: jax.Array, labels: jax.Array, shots: int, classes: int) -> jax.Array:
    """Places of images drawn without replacement, as many of every class.

    Args:
        key: [] typed random key.
        labels: [N] integers; every class has at least `shots`, see `check_shots`. Images whose
            label is no class, such as -1, are not drawn.
        shots: of every class; static.
        classes: C; static.

    Returns:
        [C shots], class by class.
    """
    # Sorted by class, and by chance within a class.
    order = jnp.lexsort((jax.random.uniform(key, labels.shape), labels))
    starts = jnp.searchsorted(labels[order], jnp.arange(classes))
    return order[(starts[:, None] + jnp.arange(shots)).reshape(-1)]


def check_shots(labels: np.ndarray, shots: int, class_names: tuple[str, ...]) -> None:
    """Raises `DataError`, which names the class, where one has fewer images than `shots`."""
    counts = np.array([np.sum(labels == place) for place in range(len(class_names))])
    few = int(np.argmin(counts))
    if counts[few] < shots:
        raise DataError(
            f"shots: expected at least {shots} images to learn from of every class, got "
            f"{counts[few]} of {class_names[few]}"
        )


@compiled("classes")
def few_shot(
    rows: jax.Array,
    features: jax.Array,
    labels: jax.Array,
    test: jax.Array,
    *,
    classes: int,
    lam: float = LAM,
) -> jax.Array:
    """Predictions of a linear probe for every draw.

    Args:
        rows: [S, n] places of the labeled images.
        features: [N, D] of the images that they are drawn from.
        labels: [N].
        test: [T, D].
        classes: C; static.
        lam: the probe's penalty on standardized features.

    Returns:
        [S, T] predicted classes; -1 where a logit is NaN.
    """

    def one(own: jax.Array) -> jax.Array:
        scaling = standardizer(features[own])
        found = probe_lbfgs(
            scaling(features[own]), labels[own], jnp.full(1, lam), classes=classes, most_steps=200
        )
        return chosen(logits(found, scaling(test))[0])

    return jax.lax.map(one, rows)

"""Named ways to judge frozen features; a number without the name of its protocol says nothing.

| preset | neighbors | linear probe |
| --- | --- | --- |
| `mae` | cosine, k = 20, exp(s / 0.07) | LARS on standardized features, 16 rates, 90 epochs |
| `scale_mae` | cosine, k = 20, exp(s / 0.07) | optimum on standardized features, 15 penalties |
| `pangaea` | cosine, k = 200, exp(s / 0.1) | optimum on standardized features, 15 penalties |
| `torchgeo_bench` | L2, raw features, k = 5, one vote each | optimum on raw features, 40 of C |

Settings are chosen on the validation images; optima are then found anew on training and validation
images together, as torchgeo-bench does. The test images are looked at once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.errors import DataError
from jaxmethods.numerics import linear_probe
from jaxmethods.numerics.predictions import chosen
from jaxmethods.rsfm.evaluation import probes
from jaxmethods.rsfm.evaluation.neighbors import Metric, neighbor_scores


class Preset(NamedTuple):
    """A protocol."""

    k: int
    metric: Metric
    temperature: float | None
    """None: one vote each."""
    standardize: bool
    lams: tuple[float, ...] | None = None
    """Penalties of the probe."""
    inverse: tuple[float, ...] | None = None
    """scikit-learn's C, lam = 1 / (C n)."""
    rates: tuple[float, ...] | None = None
    """Largest learning rates of LARS."""


SEARCH_TOLERANCE, SEARCH_STEPS = 1e-4, 200
"""The gradient's largest entry, and steps at most, while penalties are compared."""
LAMS = tuple(float(own) for own in np.logspace(-6, 1, 15))
PRESETS = {
    "mae": Preset(20, "cosine", 0.07, True, rates=tuple(map(float, np.logspace(-3, 1, 16)))),
    "scale_mae": Preset(20, "cosine", 0.07, True, lams=LAMS),
    "pangaea": Preset(200, "cosine", 0.1, True, lams=LAMS),
    "torchgeo_bench": Preset(
        5, "l2", None, False, inverse=tuple(map(float, np.logspace(-6, 4, 40)))
    ),
}


class Split(NamedTuple):
    """Features and labels of some images."""

    features: jax.Array
    """[N, D]"""
    labels: jax.Array
    """[N]"""


class Judged(NamedTuple):
    """What a protocol says of test images."""

    neighbors: jax.Array
    """[T] predicted class; -1 where features or scores are NaN."""
    probe: jax.Array
    """[T] predicted class; -1 likewise."""
    setting: float
    """Penalty or rate that the validation images chose."""
    k: int
    """Neighbors that voted: at most as many as there are images."""


def judge(name: str, train: Split, validation: Split, test: Split, classes: int) -> Judged:
    """Judges features by a protocol.

    Args:
        name: of `PRESETS`.
        train: images that are learned from.
        validation: images that choose settings.
        test: images that are judged.
        classes: C.

    Returns:
        Predictions for the test images.

    Raises:
        DataError: a class without an image to learn from.
    """
    absent = np.setdiff1d(np.arange(classes), np.asarray(train.labels))
    if len(absent):
        raise DataError(f"train: expected images of all {classes} classes, got none of {absent[0]}")
    preset = PRESETS[name]
    both = Split(*(jnp.concatenate(pair) for pair in zip(train, validation, strict=True)))
    k = min(preset.k, len(both.labels))
    weighted = preset.temperature is not None
    scores = neighbor_scores(
        both.features,
        both.labels,
        test.features,
        classes=classes,
        k=k,
        temperature=preset.temperature or 1.0,
        metric=preset.metric,
        weighted=weighted,
    )
    predicted, setting = _probe(preset, train, validation, both, test, classes)
    return Judged(chosen(scores), predicted, setting, k)


def _probe(
    preset: Preset, train: Split, validation: Split, both: Split, test: Split, classes: int
) -> tuple[jax.Array, float]:
    scale = linear_probe.standardizer if preset.standardize else linear_probe.no_scaling
    scaling = scale(train.features)
    seen = scaling(validation.features)
    if preset.rates is not None:
        rates = probes.product(preset.rates, [0.0], [0])
        found = probes.probe_sgd(scaling(train.features), train.labels, rates, classes=classes)
        best = int(jnp.argmax(linear_probe.accuracies(found, seen, validation.labels)))
        said = linear_probe.logits(found, scaling(test.features))[best]
        return chosen(said), preset.rates[best]
    lams = penalties(preset, len(train.labels))
    # The search is stopped early, the optimum that is chosen is found to rounding.
    found = linear_probe.probe_lbfgs(
        scaling(train.features),
        train.labels,
        jnp.asarray(lams),
        classes=classes,
        tolerance=SEARCH_TOLERANCE,
        most_steps=SEARCH_STEPS,
    )
    best = int(jnp.argmax(linear_probe.accuracies(found, seen, validation.labels)))
    scaling = scale(both.features)
    final = jnp.asarray(penalties(preset, len(both.labels))[best : best + 1])
    last = linear_probe.probe_lbfgs(scaling(both.features), both.labels, final, classes=classes)
    said = linear_probe.logits(last, scaling(test.features))[0]
    return chosen(said), float(lams[best])


def penalties(preset: Preset, number: int) -> np.ndarray:
    """[G] float32 penalties of a probe of n images: lam, or 1 / (C n)."""
    if preset.inverse is not None:
        return (1 / (np.array(preset.inverse) * number)).astype(np.float32)
    return np.array(preset.lams, np.float32)

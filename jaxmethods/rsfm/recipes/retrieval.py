"""Images found by images: for every test image, those of its class among all the others.

The gallery is the training and validation images, similarity is the cosine of frozen features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmethods.models.clip.contrastive import unit
from jaxmethods.numerics.statistics import markdown_table
from jaxmethods.rsfm.config import Run
from jaxmethods.rsfm.evaluation.measures.retrieval import rank
from jaxmethods.rsfm.recipes import encoders
from jaxmethods.rsfm.recipes.intervals import in_percent, of_images
from jaxmethods.rsfm.recipes.material import Material
from jaxmethods.stages import Arrays, Compute, Part, Results

STAGE = "retrieval"
KS = (1, 5, 10)
QUERIES, NEAREST = 4, 5
"""Examples that are drawn: test images, and how many of what lies nearest to each."""


def stage(run: Run, material: Material) -> Compute:
    """Ranks the gallery by all features.

    Args:
        run: the config.
        material: the images.

    Returns:
        The stage; its result is the features' name to ranks, precisions and examples.
    """
    how = run.evaluation.poolings[-1]
    names = [(name, "") for name in encoders.FIXED]
    names += [(f"{name}-{seed}", how) for name in encoders.ENCODERS for seed in range(run.seeds)]

    def parts(results: Results, place: Any) -> list[Part]:
        del place

        def compute(name: str, pooling: str) -> Arrays:
            return found_by(results["features"][name], pooling, material)

        return [Part(name, partial(compute, name, own)) for name, own in names]

    return Compute(
        STAGE,
        parts,
        lambda found: dict(zip([name for name, _ in names], found, strict=True)),
        metrics=lambda found: _metrics(run, found),
    )


def found_by(features: Mapping[str, np.ndarray], pooling: str, material: Material) -> Arrays:
    """Ranks and examples of one kind of features.

    Args:
        features: "PART" or "PART.POOLING" -> [n, D].
        pooling: of an encoder's; "" without one.
        material: labels and parts.

    Returns:
        "first" [Q] rank of the first match, "precision" [Q]; of examples "query" [q], a place among
        the test images, "nearest" [q, n], places among all images, and "right" [q, n].
    """

    def of(part: str) -> np.ndarray:
        return features[f"{part}.{pooling}" if pooling else part]

    gallery = np.concatenate([material.parts[part] for part in ("train", "validation")])
    there = jnp.asarray(np.concatenate([of("train"), of("validation")]))
    asked, truth = jnp.asarray(of("test")), material.labels[material.parts["test"]]
    own = rank(asked, jnp.asarray(truth), there, jnp.asarray(material.labels[gallery]))
    query = np.unique(np.linspace(0, len(truth) - 1, QUERIES).astype(int))
    similarity = np.asarray(unit(asked[query]) @ unit(there).T)
    nearest = gallery[np.argsort(-similarity, axis=1, kind="stable")[:, :NEAREST]]
    return {
        "first": np.asarray(own.first, np.int32),
        "precision": np.asarray(own.precision, np.float32),
        "query": query,
        "nearest": nearest,
        "right": material.labels[nearest] == truth[query][:, None],
    }


def table(run: Run, found: Mapping[str, Arrays]) -> str:
    """A row for every features and seed, with 95 % intervals, in percent."""
    head = ["images found by", "pooling", *(f"R@{k}" for k in KS), "mAP"]
    rows = []
    for name, own in found.items():
        how = "-" if name in encoders.FIXED else run.evaluation.poolings[-1]
        values = [*(own["first"] < k for k in KS), own["precision"]]
        shown = [in_percent(of_images(run, each)) for each in values]
        rows.append([encoders.shown_seed(run, name), how, *shown])
    return markdown_table(head, rows)


def _metrics(run: Run, found: Mapping[str, Arrays]) -> dict[str, np.ndarray]:
    metrics: dict[str, np.ndarray] = {}
    for name in (*encoders.FIXED, *encoders.ENCODERS):
        own: Sequence[str] = [name]
        if name in encoders.ENCODERS:
            own = [f"{name}-{seed}" for seed in range(run.seeds)]
        values = {
            "recall_at_1": [np.mean(found[each]["first"] < 1) for each in own],
            "map": [np.mean(found[each]["precision"]) for each in own],
        }
        for measure, numbers in values.items():
            label = f"{encoders.shown(run, name)}_{measure}"
            metrics[label] = np.array(numbers[0] if len(numbers) == 1 else numbers)
    return metrics

"""Linear probes of the summaries: of the judged clips, and of each group that is left out.

The penalty is chosen by cross-validation of the clips that are trained on, whose folds are the
groups where there are any; clips that are judged have no say in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.lsm.config import ProbeRun as Run
from jaxmethods.lsm.recipes.probe import material
from jaxmethods.lsm.recipes.probe.material import POOLS, Clip, Heard
from jaxmethods.numerics.linear_probe import Probe, accuracies, logits, probe_lbfgs, standardizer
from jaxmethods.numerics.predictions import right
from jaxmethods.stages import Arrays, Compute, Part, Place, Results

STAGE = "probes"
TESTED = "test"
"""The split whose clips are those of the second manifest."""
TOLERANCE, MOST_STEPS = 1e-4, 300


class Split(NamedTuple):
    """Which clips are learned from and which are judged."""

    title: str
    train: np.ndarray
    """Places of clips."""
    judged: np.ndarray


class Probed(NamedTuple):
    """Verdicts about the judged clips of every split."""

    right: dict[str, dict[str, np.ndarray]]
    """Pool -> split -> [n] bool."""
    penalty: dict[str, dict[str, float]]
    """Pool -> split -> what cross-validation chose."""
    validated: dict[str, dict[str, float]]
    """Pool -> split -> its accuracy in cross-validation."""


def splits_of(run: Run, clips: Sequence[Clip]) -> list[Split]:
    """The judged clips, then each group, all of whose clips are judged by what others taught.

    Args:
        run: the config.
        clips: all that could be heard.

    Returns:
        Splits; none of them learns from a clip that it judges.
    """
    tested = np.asarray([one.tested for one in clips])
    groups = np.asarray([one.group for one in clips])
    found = [Split(TESTED, np.flatnonzero(~tested), np.flatnonzero(tested))]
    for group in dict.fromkeys(groups[~tested].tolist()) if run.group else ():
        within = groups == group
        found.append(Split(group, np.flatnonzero(~tested & ~within), np.flatnonzero(within)))
    return found


def classes_of(clips: Sequence[Clip]) -> list[str]:
    """All labels, in order."""
    return sorted({one.label for one in clips if not one.tested})


def probes_stage(run: Run) -> Compute:
    """A probe of each kind of summary for each split."""

    def parts(results: Results, place: Place) -> list[Part]:
        del place
        heard: Heard = results[material.STAGE]
        material.check_labels(run, heard.clips)
        return [
            Part(f"{pool}-{number:02d}", partial(probe, run, heard, pool, split))
            for pool in POOLS
            for number, split in enumerate(splits_of(run, heard.clips))
        ]

    def finish(found: Sequence[Arrays]) -> Probed:
        kept: tuple[dict[str, dict[str, Any]], ...] = tuple({p: {} for p in POOLS} for _ in "123")
        for part in found:
            pool, title = bytes(part["pool"]).decode(), bytes(part["title"]).decode()
            for place, name in zip(kept, ("right", "penalty", "validated"), strict=True):
                value = part[name]
                place[pool][title] = value if name == "right" else float(value)
        return Probed(*kept)

    return Compute(STAGE, parts, finish, metrics)


def probe(run: Run, heard: Heard, pool: str, split: Split) -> Arrays:
    """Learns from one part of the clips and judges the other.

    Args:
        run: the config.
        heard: all clips.
        pool: which summaries.
        split: which clips.

    Returns:
        `right` [n] bool of the judged clips, the `penalty` that was chosen, its accuracy in
        cross-validation, `validated`, and the names of pool and split in UTF-8 bytes.
    """
    names = classes_of(heard.clips)
    labels = np.asarray([names.index(one.label) for one in heard.clips])
    features = heard.own if pool == material.OWN else heard.all
    penalties = np.asarray(run.penalties, np.float32)
    folds = folds_of(run, [heard.clips[place] for place in split.train])
    hits = np.zeros(len(penalties))
    for fold in range(folds.max() + 1):
        own, other = split.train[folds != fold], split.train[folds == fold]
        scores = _scores(features, labels, own, other, penalties, len(names))
        hits += np.asarray(scores) * len(other)
    validated = hits / len(split.train)
    chosen = int(np.argmax(validated))
    scaling = standardizer(jnp.asarray(features[split.train]))
    last = fitted(features, labels, split.train, penalties[chosen : chosen + 1], len(names))
    said = logits(last, scaling(jnp.asarray(features[split.judged])))[0]
    return {
        "right": np.asarray(right(said, jnp.asarray(labels[split.judged]))),
        "penalty": np.float64(penalties[chosen]),
        "validated": np.float64(validated[chosen]),
        "pool": np.frombuffer(pool.encode(), np.uint8),
        "title": np.frombuffer(split.title.encode(), np.uint8),
    }


def _scores(
    features: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    judged: np.ndarray,
    penalties: np.ndarray,
    classes: int,
) -> jax.Array:
    """Accuracy of every penalty, [G]."""
    found = fitted(features, labels, train, penalties, classes)
    scaling = standardizer(jnp.asarray(features[train]))
    return accuracies(found, scaling(jnp.asarray(features[judged])), jnp.asarray(labels[judged]))


def fitted(
    features: np.ndarray, labels: np.ndarray, train: np.ndarray, penalties: Any, classes: int
) -> Probe:
    """Probes of some clips' summaries, standardized by these clips.

    Args:
        features: [N, D] of all clips.
        labels: [N].
        train: places of those that are learned from.
        penalties: [G].
        classes: C.

    Returns:
        G classifiers.
    """
    own = jnp.asarray(features[train])
    return probe_lbfgs(
        standardizer(own)(own),
        jnp.asarray(labels[train]),
        jnp.asarray(penalties, jnp.float32),
        classes=classes,
        tolerance=TOLERANCE,
        most_steps=MOST_STEPS,
    )


def folds_of(run: Run, clips: Sequence[Clip]) -> np.ndarray:
    """The fold of each clip, [n] from 0: its group, or a random one of equal folds."""
    groups = list(dict.fromkeys(one.group for one in clips))
    if len(groups) > 1:
        return np.asarray([groups.index(one.group) for one in clips])
    order = np.random.default_rng(run.seed).permutation(len(clips))
    return order % min(run.folds, len(clips))


def metrics(probed: Probed) -> dict[str, Any]:
    """Accuracies of the judged clips, and of groups that were left out: mean and lowest."""
    found: dict[str, Any] = {}
    for pool, splits in probed.right.items():
        found[f"{pool}_accuracy"] = splits[TESTED].mean()
        groups = [right.mean() for title, right in splits.items() if title != TESTED]
        if groups:
            found[f"{pool}_left_out"] = np.mean(groups)
            found[f"{pool}_left_out_lowest"] = np.min(groups)
    return found

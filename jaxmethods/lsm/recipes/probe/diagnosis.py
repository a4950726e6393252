"""What a probe run trained, as a model that can be diagnosed: the answerer, or the linear probe."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.lsm.config import AnswererConfig
from jaxmethods.lsm.config import ProbeRun as Run
from jaxmethods.lsm.recipes.diagnosis import examples, suffix_logits
from jaxmethods.lsm.recipes.probe import answering, linear, material
from jaxmethods.lsm.recipes.probe.material import Heard
from jaxmethods.numerics.linear_probe import standardizer
from jaxmethods.stages import Diagnosable, Results


def diagnosed(run: Run, results: Results, seed: int) -> Diagnosable:
    """The answerer on clips of both manifests; without one, the probe of clips' own frames.

    Args:
        run: the config.
        results: of all stages.
        seed: its place among the run's; there is one linear probe for all.

    Returns:
        Inputs are frames and the question, or standardized summaries [N, 2 C]. Held out are the
        clips of the second manifest.
    """
    heard: Heard = results[material.STAGE]
    split = next(one for one in linear.splits_of(run, heard.clips) if one.title == linear.TESTED)
    if run.answerer is None:
        return _probe(run, heard, split, results)
    return _answerer(run.answerer, heard, split, results, seed)


def _answerer(
    config: AnswererConfig,
    heard: Heard,
    split: linear.Split,
    results: Results,
    seed: int,
) -> Diagnosable:
    words = answering.words_of(heard.clips)
    data = answering.data_of(heard, split, words)

    def rows(places: np.ndarray) -> Any:
        text = jax.tree.map(lambda leaf: leaf[places], data.text)
        return examples(data.frames, data.lengths, places, text)

    stage = answering.stage_name(linear.TESTED)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf[seed]), results[stage])
    apply = suffix_logits(answering.model_of(config, words))
    title = "a speech-text model that answers with labels"
    train, judged = rows(split.train), rows(split.judged)
    return Diagnosable(title, apply, params, "cross_entropy", train, judged)


def _probe(run: Run, heard: Heard, split: linear.Split, results: Results) -> Diagnosable:
    penalty = results[linear.STAGE].penalty[material.OWN][linear.TESTED]
    names = linear.classes_of(heard.clips)
    labels = np.asarray([names.index(one.label) for one in heard.clips], np.int32)
    found = linear.fitted(heard.own, labels, split.train, [penalty], len(names))
    scaling = standardizer(jnp.asarray(heard.own[split.train]))
    features = np.asarray(scaling(jnp.asarray(heard.own)))
    params = {"weight": found.weight[0], "bias": found.bias[0]}

    def apply(params: Any, features: jax.Array) -> jax.Array:
        return features @ params["weight"] + params["bias"]

    train, judged = ((features[own], labels[own]) for own in (split.train, split.judged))
    title = "a linear probe of a frozen encoder"
    return Diagnosable(title, apply, params, "cross_entropy", train, judged)

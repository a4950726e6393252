"""Classes by their captions, and captions by images, where an encoder learned from captions.

A class is a pair of land covers; its prompts are the caption's template with either of the two
first. No label of an image is used. Recall counts the images with equal captions as matches.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data.earth.scenes import caption
from jaxmethods.models.clip import zero_shot_head
from jaxmethods.models.clip.contrastive import unit
from jaxmethods.models.geovit import Context
from jaxmethods.numerics.predictions import chosen
from jaxmethods.numerics.statistics import markdown_table
from jaxmethods.rsfm.config import ImageTextConfig, Run
from jaxmethods.rsfm.evaluation.measures.retrieval import rank
from jaxmethods.rsfm.pretraining.learners import caption_features, image_features
from jaxmethods.rsfm.recipes import encoders, objectives
from jaxmethods.rsfm.recipes.intervals import in_percent, of_images
from jaxmethods.rsfm.recipes.material import Material
from jaxmethods.stages import Arrays, Compute, Part, Results

STAGE = "zero_shot"
KS = (1, 5, 10)
EXAMPLES, NEAREST = 4, 3


def stage(run: Run, material: Material, config: ImageTextConfig) -> Compute:
    """Zero-shot classes and captions of the test images.

    Args:
        run: the config.
        material: with scenes.
        config: of the towers.

    Returns:
        The stage; its result has for each seed what is right, ranks and examples.
    """

    def parts(results: Results, place: Any) -> list[Part]:
        del place

        def compute(seed: int) -> Arrays:
            params = encoders.one_seed(results, objectives.STAGE, seed)
            return judge(params, config, material)

        return [Part(f"seed-{seed}", partial(compute, seed)) for seed in range(run.seeds)]

    def metrics(found: list[Arrays]) -> dict[str, np.ndarray]:
        shares = {"accuracy": "right", "image_to_text_recall_at_1": "image_to_text"}
        shares["text_to_image_recall_at_1"] = "text_to_image"
        values = {
            label: [np.mean(own[name] if name == "right" else own[name] < 1) for own in found]
            for label, name in shares.items()
        }
        return {label: np.array(own[0] if len(own) == 1 else own) for label, own in values.items()}

    return Compute(STAGE, parts, list, metrics=metrics)


def judge(params: Any, config: ImageTextConfig, material: Material) -> Arrays:
    """What both towers say of the test images.

    Args:
        params: of both.
        config: of both.
        material: with scenes.

    Returns:
        "right" [T] bool; "image_to_text" and "text_to_image" [T] rank of the first match;
        "examples" [q, 1 + n], the number of a test image's caption and those of the nearest.
    """
    scenes = material.scenes
    assert scenes is not None
    rows = material.parts["test"]
    describe = jax.jit(partial(caption_features, params, config))
    images = jnp.asarray(material.normalized("test"))
    context = Context(gsd=jnp.full(len(images), scenes.gsd))
    see = jax.jit(lambda own: image_features(params, config, own, context))
    seen = see(images)
    pairs = [name.split(" and ") for name in material.class_names]
    prompts = [caption(*way) for pair in pairs for way in (pair, pair[::-1])]
    heads = _described(describe, material, prompts).reshape(len(pairs), 2, -1)  # [C, 2, P]
    said = chosen(unit(seen) @ zero_shot_head(heads).T)
    texts = _texts(material)
    number = {text: place for place, text in enumerate(texts)}
    own = jnp.asarray([number[scenes.captions[row]] for row in rows])
    written, marks = _described(describe, material, texts), jnp.arange(len(texts))
    nearest = jnp.argsort(-(unit(seen[:EXAMPLES]) @ unit(written).T), axis=1)[:, :NEAREST]
    return {
        "right": np.asarray(said) == material.labels[rows],
        "image_to_text": np.asarray(rank(seen, own, written, marks).first),
        "text_to_image": np.asarray(rank(written, marks, seen, own).first),
        "examples": np.concatenate([np.asarray(own)[:EXAMPLES, None], np.asarray(nearest)], 1),
    }


def table(run: Run, material: Material, found: list[Arrays]) -> str:
    """A row for each seed, and what captions lie nearest to some images."""
    head = ["captions", "zero-shot accuracy", "caption R@1", *(f"image R@{k}" for k in KS)]
    rows = []
    for seed, own in enumerate(found):
        values = [own["right"], own["image_to_text"] < 1]
        values += [own["text_to_image"] < k for k in KS]
        rows.append(
            [
                f"{run.model.objective}-{seed}",
                *(in_percent(of_images(run, value)) for value in values),
            ]
        )
    texts, lines = _texts(material), []
    for place, (true, *near) in enumerate(found[0]["examples"]):
        nearest = "; ".join(str(texts[own]) for own in near)
        lines.append(f'- image {place}, "{texts[true]}" Nearest: {nearest}')
    return markdown_table(head, rows) + "\n\n" + "\n".join(lines)


def _texts(material: Material) -> list[str]:
    """The captions of the test images, each once."""
    assert material.scenes is not None
    return sorted({material.scenes.captions[row] for row in material.parts["test"]})


def _described(describe: Any, material: Material, texts: list[str]) -> jax.Array:
    """[n, P] features of texts."""
    ids, mask = objectives.captions_of(material, texts)[0]
    return describe(jnp.asarray(ids[:, 0]), jnp.asarray(mask[:, 0]))

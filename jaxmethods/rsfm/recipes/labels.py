"""What labels are worth: fine-tuning and probing with few of them, pretrained and from scratch.

    frozen    a linear probe of the pretrained encoder's features
    lora      low-rank additions to the pretrained encoder, and a head
    tuned     the whole pretrained encoder, and a head
    scratch   the same network, never trained before

Draws of the labeled images are shared by all four, so that their differences are paired. Nothing is
chosen by validation images, so they are drawn from as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.models.geovit import EncoderConfig, init
from jaxmethods.numerics.keys import named
from jaxmethods.numerics.statistics import markdown_table, student_interval
from jaxmethods.plotting import INK, new_figure, open_frame, write_png
from jaxmethods.rsfm.config import Run
from jaxmethods.rsfm.evaluation.fewshot import check_shots, draw_shots, few_shot
from jaxmethods.rsfm.evaluation.finetune import How, Labeled, finetune_draws
from jaxmethods.rsfm.recipes import encoders
from jaxmethods.rsfm.recipes.material import Material
from jaxmethods.stages import Arrays, Compute, Part, Results

STAGE = "labels"
WAYS = {
    "frozen": "frozen, linear probe",
    "lora": "LoRA",
    "tuned": "fine-tuned",
    "scratch": "from scratch",
}
LEARNED = ("train", "validation")
COLORS = {"frozen": "#8fa3b5", "lora": "#c98a2b", "tuned": INK, "scratch": "#b5483a"}


def stage(run: Run, material: Material, config: EncoderConfig) -> Compute:
    """All ways with all numbers of labels; with several seeds, the encoder of the first.

    Args:
        run: the config.
        material: the images.
        config: of the encoder.

    Returns:
        The stage; its result is (way, labels a class) to [draws] accuracies.

    Raises:
        DataError: a class with fewer images than labels are asked for.
    """
    names = [(way, shots) for shots in run.finetune.shots for way in WAYS]
    labels = material.labels[_pool(material)]
    check_shots(labels, max(run.finetune.shots), material.class_names)

    def parts(results: Results, place: Any) -> list[Part]:
        del place
        return [
            Part(f"{way}-{shots}", partial(_right, way, shots, run, material, config, results))
            for way, shots in names
        ]

    return Compute(
        STAGE,
        parts,
        lambda found: {name: own["accuracy"] for name, own in zip(names, found, strict=True)},
        metrics=lambda found: {
            f"{way}_{shots}": np.mean(own) for (way, shots), own in found.items()
        },
    )


def _right(
    way: str,
    shots: int,
    run: Run,
    material: Material,
    config: EncoderConfig,
    results: Results,
) -> Arrays:
    own, classes = run.finetune, len(material.class_names)
    key = named(jax.random.key(run.seed), f"labels-{shots}")
    keys = jax.random.split(key, own.draws)
    labels = jnp.asarray(material.labels[_pool(material)])
    rows = jax.vmap(partial(draw_shots, labels=labels, shots=shots, classes=classes))(keys)
    judged = _spread(material, own.judged)
    truth = material.labels[material.parts["test"]][judged]
    if way == "frozen":
        how = run.evaluation.poolings[-1]
        found = results["features"]["mae-0"]
        train = np.concatenate([found[f"{part}.{how}"] for part in LEARNED])
        test = found[f"test.{how}"][judged]
        said = few_shot(rows, jnp.asarray(train), labels, jnp.asarray(test), classes=classes)
    else:
        images = np.concatenate([material.normalized(part) for part in LEARNED])
        scratch = way == "scratch"
        params = encoders.one_seed(results, "pretrain", 0)["encoder"]
        if scratch:
            params = jax.vmap(lambda own: init(named(own, "scratch"), config))(keys)
        said = finetune_draws(
            keys,
            params,
            rows,
            Labeled(jnp.asarray(images), labels),
            jnp.asarray(material.normalized("test")[judged]),
            config=config,
            training=own,
            classes=classes,
            how=cast(How, "lora" if way == "lora" else "full"),
            fresh=scratch,
            gsd=None if material.scenes is None else jnp.asarray(float(material.scenes.gsd)),
        )
    return {"accuracy": np.mean(np.asarray(said) == truth, axis=1, dtype=np.float32)}


def _pool(material: Material) -> np.ndarray:
    """The images that labeled ones are drawn from."""
    return np.concatenate([material.parts[part] for part in LEARNED])


def _spread(material: Material, most: int) -> np.ndarray:
    """Places of test images at even distances, so that all classes are there."""
    number = len(material.parts["test"])
    return np.arange(number) if number <= most else np.arange(most) * number // most


def table(run: Run, found: Mapping[tuple[str, int], np.ndarray]) -> str:
    """A row for every number of labels, with 95 % intervals over draws, in percent."""
    head = ["labels a class", *WAYS.values(), "fine-tuned minus from scratch"]
    rows = []
    for shots in run.finetune.shots:
        own = [found[way, shots] for way in WAYS]
        gain = found["tuned", shots] - found["scratch", shots]
        rows.append([str(shots), *(_percent(values) for values in (*own, gain))])
    return markdown_table(head, rows)


def draw_curve(path: Path, run: Run, found: Mapping[tuple[str, int], np.ndarray]) -> None:
    """The accuracies over the number of labels.

    Args:
        path: of the picture.
        run: the config.
        found: the stage's result.
    """
    shots = list(run.finetune.shots)
    figure = new_figure(5.2, 3.4)
    panel = figure.subplots()
    for way, title in WAYS.items():
        own = [student_interval(found[way, number]) for number in shots]
        means = np.array([100 * one.mean for one in own])
        errors = [means - [100 * one.low for one in own], [100 * one.high for one in own] - means]
        panel.errorbar(
            shots, means, yerr=np.array(errors), color=COLORS[way], label=title, marker="o",
            markersize=4, capsize=3,
        )  # fmt: skip
    panel.set(xscale="log", xlabel="labels a class", ylabel="test images that are right, %")
    panel.set_xticks(shots, [str(number) for number in shots])
    panel.minorticks_off()
    panel.legend(frameon=False, fontsize=8)
    open_frame(panel)
    write_png(figure, path)


def _percent(values: np.ndarray) -> str:
    own = student_interval(values)
    return f"{100 * own.mean:.1f} [{100 * own.low:.1f}, {100 * own.high:.1f}]"

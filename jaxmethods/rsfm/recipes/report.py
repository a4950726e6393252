"""The table of a comparison, and pictures: what was painted, maps, accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data.earth.scenes import CLASSES
from jaxmethods.files import write_atomically
from jaxmethods.models.geovit import Context
from jaxmethods.models.geovit.patches import patchify, unpatchify
from jaxmethods.numerics.statistics import markdown_table
from jaxmethods.plotting import INK, new_figure, open_frame, write_png
from jaxmethods.rsfm.config import MAEConfig, Run
from jaxmethods.rsfm.evaluation.bootstrap import paired_difference
from jaxmethods.rsfm.pretraining import mae
from jaxmethods.rsfm.recipes import dense, encoders, labels, retrieval, zero_shot
from jaxmethods.rsfm.recipes.intervals import in_percent, of_images
from jaxmethods.rsfm.recipes.material import Material
from jaxmethods.stages import Arrays, Compute, Part, Results

PAINTED = "painted"
PICTURES = 4
COLORS = np.array(
    [
        [0.2, 0.4, 0.8],
        [0.1, 0.4, 0.15],
        [0.6, 0.8, 0.4],
        [0.7, 0.55, 0.35],
        [0.8, 0.2, 0.2],
    ]
)
"""The colors of the classes of generated scenes."""


def painted_stage(run: Run, material: Material, config: MAEConfig) -> Compute:
    """What the autoencoder of the first seed makes of a few test images.

    Args:
        run: the config.
        material: the images.
        config: of the autoencoder.

    Returns:
        The stage; its result has "image", "masked" and "painted" [n, H, W, C], normalized.
    """

    def compute(results: Results) -> Arrays:
        params = encoders.one_seed(results, "pretrain", 0)
        return paint(params, config, material, run.seed)

    def parts(results: Results, place: Any) -> list[Part]:
        del place
        return [Part("test", partial(compute, results))]

    return Compute(PAINTED, parts, lambda found: dict(found[0]))


def paint(params: Any, config: MAEConfig, material: Material, seed: int) -> Arrays:
    """Test images with hidden patches gray, and with what is painted there.

    Args:
        params: of encoder and decoder.
        config: of the autoencoder.
        material: the images.
        seed: of the masks.

    Returns:
        "image", "masked" and "painted" [n, H, W, C]; patches that were seen are the image's.
    """
    images = jnp.asarray(material.normalized("test")[:PICTURES])
    number, patch = len(images), config.encoder.patch
    noise = jax.random.uniform(jax.random.key(seed), mae.noise_shape(config, number))
    gsd = None if material.gsd is None else jnp.full(number, material.gsd)
    out = mae.forward(params, config, images, noise, Context(gsd=gsd))
    target = patchify(images, patch)
    pred = out.pred
    if config.norm_pix != "none":  # predictions are of standardized patches
        rows = target.reshape(*target.shape[:2], patch * patch, -1)  # [n, L, p p, C]
        axes = (2, 3) if config.norm_pix == "joint" else (2,)
        scale = jnp.std(rows, axis=axes, ddof=1, keepdims=True)
        pred = pred.reshape(rows.shape) * scale + jnp.mean(rows, axis=axes, keepdims=True)
        pred = pred.reshape(target.shape)
    hidden = out.masks.hidden[..., None] > 0
    channels = images.shape[-1]
    shown = {"masked": jnp.where(hidden, 0.0, target), "painted": jnp.where(hidden, pred, target)}
    found = {name: np.asarray(unpatchify(own, patch, channels)) for name, own in shown.items()}
    return {"image": np.asarray(images), **found}


def write(run: Run, material: Material, results: Results, folder: Path) -> None:
    """Writes `table.md` and the figures.

    Args:
        run: the config.
        material: the images.
        results: of the stages that the report reads.
        folder: where the files go.
    """
    comparison = results["comparison"]
    text = table(run, comparison) + "\n\n" + differences(run, comparison)
    if labels.STAGE in results:
        text += "\n\n" + labels.table(run, results[labels.STAGE])
    text += "\n\n" + retrieval.table(run, results[retrieval.STAGE])
    if zero_shot.STAGE in results:
        text += "\n\n" + zero_shot.table(run, material, results[zero_shot.STAGE])
    text += "\n\n" + conditions(run, material) + "\n"
    write_atomically(folder / "table.md", text)
    (folder / "figures").mkdir(exist_ok=True)
    if PAINTED in results:
        _draw_painted(folder / "figures" / "painted.png", material, results[PAINTED])
    _draw_retrieved(folder / "figures" / "retrieved.png", material, results[retrieval.STAGE])
    _draw_accuracies(folder / "figures" / "accuracies.png", run, comparison)
    if labels.STAGE in results:
        labels.draw_curve(folder / "figures" / "labels.png", run, results[labels.STAGE])
    if dense.STAGE in results:
        _draw_maps(folder / "figures" / "maps.png", run, material, results[dense.STAGE])


def table(run: Run, comparison: Mapping[Any, Arrays]) -> str:
    """A row for every features, pooling, preset and seed, with 95 % intervals, in percent."""
    head = ["features", "pooling", "protocol", "neighbors", "linear probe", "k", "chosen setting"]
    rows = []
    for (name, how, preset), found in comparison.items():
        own = [encoders.shown_seed(run, name), how or "-", preset]
        own += [in_percent(of_images(run, found[what])) for what in ("neighbors", "probe")]
        rows.append([*own, str(int(found["k"])), f"{float(found['setting']):.3g}"])
    return markdown_table(head, rows)


def differences(run: Run, comparison: Mapping[Any, Arrays]) -> str:
    """The pretrained encoder less each other, on the same test images, first seed."""
    head = ["pretrained encoder minus", "pooling", "protocol", "linear probe", "differs"]
    rows = []
    for how in run.evaluation.poolings:
        for preset in run.evaluation.presets:
            first = comparison["mae-0", how, preset]["probe"]
            others = [("random_encoder-0", how), *((name, "") for name in encoders.FIXED)]
            for name, other in others:
                second = comparison[name, other, preset]["probe"]
                key = jax.random.key(run.seed)
                own = paired_difference(
                    key,
                    jnp.asarray(first, jnp.float32),
                    jnp.asarray(second, jnp.float32),
                    run.evaluation.draws,
                )
                row = [name.replace("_", " "), how, preset, in_percent(own)]
                rows.append([*row, "yes" if own.excludes_zero else "no"])
    return markdown_table(head, rows)


def conditions(run: Run, material: Material) -> str:
    """What the numbers depend on, in words."""
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in material.parts.items())
    lines = [
        f"Images: {counts}; {material.images.shape[1]} pixels a side; "
        f"bands {', '.join(material.bands)}; {len(material.class_names)} classes.",
        f"Pretraining: `{run.model.objective}`, {run.pretrain.steps} steps of "
        f"{run.pretrain.batch} images.",
        "Normalization: `dataset`, mean and deviation of the training images; fixed features read "
        "pixels over full scale.",
        "Intervals: 95 %, bootstrap over test images.",
    ]
    if run.finetune.shots:
        lines.append(
            f"Few labels: {run.finetune.draws} draws, each balanced; Student's intervals over "
            f"draws; at most {run.finetune.judged} test images."
        )
    if material.scenes is None:
        lines.append("Splits of neighboring tiles are optimistic; coordinates are not known here.")
    else:
        lines.append("Images are generated; nothing follows for real ones.")
    return "\n".join(f"- {line}" for line in lines)


def _color(material: Material, images: np.ndarray) -> np.ndarray:
    """[n, H, W, 3] between 0 and 1 of normalized images: red, green, blue, or the first band."""
    statistics = material.statistics
    wide = images * statistics.std + statistics.mean
    names = list(material.bands)
    for trio in (("R", "G", "B"), ("B4", "B3", "B2")):
        if set(trio) <= set(names):
            places = [names.index(name) for name in trio]
            break
    else:
        places = [0, 0, 0]
    chosen = wide[..., places]
    low, high = np.quantile(chosen, [0.02, 0.98])
    return np.clip((chosen - low) / max(high - low, 1e-9), 0, 1)


def _grid(rows: Sequence[tuple[str, np.ndarray]], path: Path, legend: Sequence[str] = ()) -> None:
    """Pictures [n, H, W, 3], a row for each name; `legend`: classes in the order of `COLORS`."""
    number = len(rows[0][1])
    figure = new_figure(1.3 * number + 0.6, 1.35 * len(rows))
    panels = figure.subplots(len(rows), number, squeeze=False)
    for own, (name, pictures) in zip(panels, rows, strict=True):
        for panel, picture in zip(own, pictures, strict=True):
            panel.imshow(picture, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
        own[0].set_ylabel(name, fontsize=8)
    for name, color in zip(legend, COLORS, strict=False):
        panels[-1, 0].scatter([], [], color=color, marker="s", label=name)
    if legend:
        figure.legend(loc="outside lower center", ncols=len(legend), frameon=False, fontsize=8)
    write_png(figure, path)


def _draw_painted(path: Path, material: Material, painted: Arrays) -> None:
    names = ("image", "masked", "painted")
    colored = _color(material, np.concatenate([painted[name] for name in names]))
    _grid(list(zip(names, np.split(colored, len(names)), strict=True)), path)


def _draw_retrieved(path: Path, material: Material, found: Mapping[str, Arrays]) -> None:
    """A row for each query, then what lies nearest; of another class with a red edge."""
    first = found["mae-0"]
    asked = material.images[material.parts["test"]][first["query"]]
    near = material.images[first["nearest"]]
    queries, depth = near.shape[:2]
    whole = np.concatenate([asked[:, None], near], axis=1)  # [q, 1 + n, H, W, C]
    statistics = material.statistics
    flat = whole.reshape(-1, *whole.shape[2:])
    colored = _color(material, (flat - statistics.mean) / statistics.std)
    panels = new_figure(1.2 * (depth + 1), 1.3 * queries)
    grid = panels.subplots(queries, depth + 1, squeeze=False)
    for place, (panel, picture) in enumerate(zip(grid.flat, colored, strict=True)):
        row, column = divmod(place, depth + 1)
        panel.imshow(picture, interpolation="nearest")
        panel.set(xticks=[], yticks=[])
        right = column == 0 or first["right"][row, column - 1]
        panel.spines[:].set(color=INK if right else "#c0392b", linewidth=1 if right else 3)
        if row == 0:
            panel.set_title("query" if column == 0 else str(column), fontsize=8)
    write_png(panels, path)


def _draw_maps(path: Path, run: Run, material: Material, found: Mapping[str, Arrays]) -> None:
    first = found["mae-0-cover"]
    number = min(PICTURES, len(first["maps"]))
    rows = [("image", _color(material, material.normalized("test")[:number]))]
    truth = first["truth"][:number]
    palette = np.concatenate([COLORS, np.zeros((256 - len(CLASSES), 3))])
    rows.append(("land cover", palette[truth]))
    for name in ("pixels", "random_encoder-0", "mae-0"):
        label = encoders.shown(run, name.removesuffix("-0")).replace("_", "\n")
        rows.append((label, palette[found[f"{name}-cover"]["maps"][:number]]))
    _grid(rows, path, CLASSES)


def _draw_accuracies(path: Path, run: Run, comparison: Mapping[Any, Arrays]) -> None:
    preset = run.evaluation.presets[0]
    rows = [(key, own) for key, own in comparison.items() if key[2] == preset]
    found = [(key, of_images(run, own["probe"])) for key, own in rows]
    found.sort(key=lambda item: item[1].mean)
    names = [" ".join(filter(None, (encoders.shown_seed(run, key[0]), key[1]))) for key, _ in found]
    means = np.array([100 * own.mean for _, own in found])
    errors = 100 * np.array([[own.mean - own.low, own.high - own.mean] for _, own in found]).T
    figure = new_figure(6.4, 0.35 * len(found) + 1.0)
    panel = figure.subplots()
    colors = [INK if key[0].startswith("mae") else "#8fa3b5" for key, _ in found]
    panel.barh(names, means, xerr=np.maximum(errors, 0), color=colors, error_kw={"capsize": 3})
    panel.set(xlabel=f"linear probe, % of test images ({preset}, 95 % intervals)")
    open_frame(panel)
    write_png(figure, path)

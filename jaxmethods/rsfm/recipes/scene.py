"""`method: rsfm` with `data.scene`: a real scene read, normalized, encoded, mapped and measured.

The left part of a scene is learned from and the right one judged, so that no judged pixel lies in a
tile that was learned from. Stages: `pretrain`, a masked autoencoder of the left part's tiles at all
dates, without labels; `map`, linear heads on raw pixels, on a random and on the pretrained encoder,
and a pyramid on both; each paints the whole scene at one date through overlapping windows. Pixels
without data or without a label count in no loss and no measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data.earth.normalization import dataset_statistics, normalize
from jaxmethods.data.earth.sensors import SENTINEL2, places_of
from jaxmethods.errors import DataError, UserError
from jaxmethods.files import read_npz, write_atomically
from jaxmethods.models.geovit import EncoderConfig, encode, init
from jaxmethods.models.geovit.patches import patchify
from jaxmethods.numerics.keys import named
from jaxmethods.numerics.statistics import markdown_table
from jaxmethods.plotting import new_figure, write_png
from jaxmethods.rsfm.config import Run
from jaxmethods.rsfm.evaluation import fpn
from jaxmethods.rsfm.evaluation.measures import segmentation
from jaxmethods.rsfm.evaluation.segmenter import fit_segmenter, segment
from jaxmethods.rsfm.evaluation.tiles import tiled_apply
from jaxmethods.rsfm.recipes import encoders
from jaxmethods.rsfm.recipes.material import PARTS, Material
from jaxmethods.stages import Arrays, Compute, Part, Results

STAGE = "map"
ROWS = (
    ("pixels", "linear"),
    ("random_encoder", "linear"),
    ("random_encoder", "pyramid"),
    ("mae", "linear"),
    ("mae", "pyramid"),
)
WIDTH = 32
"""Channels of the pyramid."""
NAMES = (
    *("no label", "cultivated", "forest", "grassland", "shrubland", "water"),
    *("wetland", "tundra", "artificial", "bare", "snow"),
)
COLORS = np.array(
    [
        *([0, 0, 0], [0.95, 0.85, 0.3], [0.1, 0.4, 0.15], [0.6, 0.8, 0.4], [0.55, 0.5, 0.2]),
        *([0.2, 0.4, 0.8], [0.4, 0.7, 0.7], [0.75, 0.7, 0.6], [0.8, 0.2, 0.2], [0.7, 0.55, 0.35]),
        [1, 1, 1],
    ]
)


class Scene(NamedTuple):
    """A place at several dates, with land cover."""

    images: np.ndarray
    """[T, H, W, C] uint16"""
    valid: np.ndarray
    """[T, H, W] bool: not all bands are 0."""
    labels: np.ndarray
    """[H, W] uint8, 255 where there is none."""
    bands: tuple[str, ...]


def read_scene(path: Path, bands: tuple[str, ...]) -> Scene:
    """Reads `bands_dn` [T, H, W, C], `band_names` [C] and `lulc` [H, W] (0: no label) of an npz.

    A pixel whose bands are all 0, or of which one is no finite number, has no data.

    Args:
        path: of the file.
        bands: which of its bands, by name and in this order; none: all of Sentinel-2's.

    Returns:
        The scene.

    Raises:
        DataError: an array that isn't there or has another shape, or a band that it doesn't have.
    """
    arrays = read_npz(path)
    for name in ("bands_dn", "band_names", "lulc"):
        if name not in arrays:
            raise DataError(f"data.scene {path}: expected the array {name}, got {list(arrays)}")
    images, labels = arrays["bands_dn"], arrays["lulc"]
    names = [f"B{str(name)[1:].lstrip('0')}" for name in arrays["band_names"]]
    if images.ndim != 4 or images.shape[1:3] != labels.shape or len(names) != images.shape[3]:
        raise DataError(
            f"data.scene {path}: expected bands_dn [T, H, W, C], band_names [C] and lulc [H, W], "
            f"got {images.shape}, {(len(names),)} and {labels.shape}"
        )
    bands = bands or tuple(SENTINEL2)
    images = images[..., places_of(names, bands, str(path))]
    finite = np.all(np.isfinite(images), axis=-1)
    images = np.where(finite[..., None], images, images.dtype.type(0))
    known = np.where(labels == 0, segmentation.IGNORED, labels).astype(np.uint8)
    return Scene(images, np.any(images != 0, axis=-1), known, bands)


def read_tiles(run: Run) -> tuple[Scene, Material]:
    """The scene, and its tiles: those of the left part to learn from, of the right to judge.

    Raises:
        DataError: what is wrong with the file, or a scene that is smaller than its tiles.
    """
    assert run.data.scene is not None
    scene = read_scene(run.data.scene, run.data.bands)
    tile, border = run.data.tile, border_of(run, scene)
    if min(border, scene.labels.shape[1] - border, scene.labels.shape[0]) < tile:
        raise DataError(
            f"data.tile: expected at most the sides of the parts of a scene of "
            f"{scene.labels.shape[0]} x {scene.labels.shape[1]} pixels, got {tile}"
        )
    step = max(tile // 2, 1)
    places = {
        "train": _places(scene.labels.shape[0], 0, border, tile, step),
        "test": _places(scene.labels.shape[0], border, scene.labels.shape[1], tile, step),
    }
    dates = len(scene.images)
    tiles = {name: _tiles(scene.images, own, tile) for name, own in places.items()}
    seen = {name: _tiles(scene.valid, own, tile) for name, own in places.items()}
    number = len(tiles["train"])
    rows = {
        "train": np.arange(number),
        "validation": np.arange(0),
        "test": number + np.arange(len(tiles["test"])),
    }
    learned = scene.images[:, :, :border], scene.valid[:, :, :border]
    material = Material(
        np.concatenate([tiles[name] for name in ("train", "test")]),
        np.concatenate(
            [
                np.tile(_tiles(scene.labels[None], places[name], tile), (dates, 1, 1))
                for name in ("train", "test")
            ]
        ),
        NAMES,
        scene.bands,
        10000.0,
        {part: rows[part] for part in PARTS},
        dataset_statistics(learned[0], scene.bands, learned[1]),
        np.concatenate([seen[name] for name in ("train", "test")]),
    )
    return scene, material


def border_of(run: Run, scene: Scene) -> int:
    """The first column that is judged."""
    return int(scene.labels.shape[1] * run.data.learned)


def _places(height: int, left: int, right: int, tile: int, step: int) -> np.ndarray:
    """[n, 2] upper left corners of tiles; the last ones reach the edges."""
    rows = np.unique([*range(0, height - tile + 1, step), height - tile])
    columns = np.unique([*range(left, right - tile + 1, step), right - tile])
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)


def _tiles(arrays: np.ndarray, places: np.ndarray, tile: int) -> np.ndarray:
    """[T n, tile, tile, ...] of [T, H, W, ...], date by date."""
    cut = [arrays[:, row : row + tile, column : column + tile] for row, column in places]
    return np.stack(cut, axis=1).reshape(-1, tile, tile, *arrays.shape[3:])


def stage(run: Run, scene: Scene, material: Material, config: EncoderConfig) -> Compute:
    """Heads that are learned on the left part and paint the whole.

    Args:
        run: the config.
        scene: the scene.
        material: its tiles.
        config: of the encoder.

    Returns:
        The stage; its result is "MODEL-HEAD" to the map and the judged part's confusion matrix.
    """
    names = [f"{model}-{head}" for model, head in ROWS]

    def parts(results: Results, place: Any) -> list[Part]:
        del place
        return [
            Part(name, partial(_map, *row, run, scene, material, config, results))
            for name, row in zip(names, ROWS, strict=True)
        ]

    return Compute(
        STAGE, parts, lambda found: dict(zip(names, found, strict=True)), metrics=_metrics
    )


def _map(
    model: str,
    head: str,
    run: Run,
    scene: Scene,
    material: Material,
    config: EncoderConfig,
    results: Results,
) -> Arrays:
    tokens = _tokens(model, head, run, config, results)
    rows, classes, tile = material.parts["train"], len(NAMES), run.data.tile
    pixels = material.normalized("train")
    labels = np.where(material.valid[rows], material.labels[rows], segmentation.IGNORED)  # type: ignore[index]
    seen = jnp.concatenate(
        [tokens(jnp.asarray(pixels[i : i + 64])) for i in range(0, len(pixels), 64)]
    )
    steps = run.evaluation.segmentation_steps
    if head == "linear":
        settings = {"patch": config.patch, "classes": classes}
        fitted = fit_segmenter(seen, jnp.asarray(labels), steps=steps, **settings)
        paint = partial(segment, fitted, **settings)
    else:
        shape = {"classes": classes, "size": tile, "width": WIDTH}
        key = jax.random.key(run.seed)
        learned = fpn.fit_pyramid(key, seen, jnp.asarray(labels), steps=steps, **shape)
        paint = partial(fpn.segment, learned, **shape)
    whole = normalize(scene.images[run.data.date], scene.bands, "dataset", material.statistics)
    logits = tiled_apply(lambda own: paint(tokens(own)), jnp.asarray(whole), tile)
    finite = np.all(np.isfinite(logits), axis=-1)
    if not finite[scene.valid[run.data.date]].all():
        raise UserError(
            f"evaluation: the {head} head on {model} diverged, its logits are not finite; "
            "lower its rate or standardize the bands"
        )
    said = np.asarray(jnp.argmax(logits, axis=-1), np.uint8)
    truth = np.where(scene.valid[run.data.date], scene.labels, segmentation.IGNORED)
    judged = slice(border_of(run, scene), None)
    matrix = segmentation.confusion(
        jnp.asarray(truth[:, judged]), jnp.asarray(said[:, judged]), classes
    )
    return {"map": said, "confusion": np.asarray(matrix)}


def _tokens(
    model: str, head: str, run: Run, config: EncoderConfig, results: Results
) -> Callable[[jax.Array], jax.Array]:
    """Normalized tiles -> tokens [B, L, D], or of four blocks [B, 4, L, D] for the pyramid."""
    if model == "pixels":
        return lambda images: patchify(images, config.patch)
    if model == "mae":
        params = encoders.one_seed(results, "pretrain", 0)["encoder"]
    else:
        params = init(named(jax.random.key(run.seed), "random_encoder"), config)
    blocks = fpn.default_blocks(config)

    @jax.jit
    def apply(params: Any, images: jax.Array) -> jax.Array:
        if head == "linear":
            return encode(params, config, images).patches
        hidden = encode(params, config, images, taps=("hidden",)).hidden
        assert hidden is not None
        return fpn.levels_of(hidden, config, blocks)

    return partial(apply, params)


def _metrics(found: Mapping[str, Arrays]) -> dict[str, np.ndarray]:
    metrics: dict[str, np.ndarray] = {}
    for name, own in found.items():
        measured = segmentation.measures(jnp.asarray(own["confusion"]))
        label = name.replace("-", "_")
        metrics[f"{label}_miou"] = np.asarray(measured.miou)
        metrics[f"{label}_accuracy"] = np.asarray(measured.accuracy)
    return metrics


def write(run: Run, scene: Scene, results: Results, folder: Path) -> None:
    """Writes `table.md` and `figures/map.png`.

    Args:
        run: the config.
        scene: the scene.
        results: of the stages that the report reads.
        folder: where the files go.
    """
    found = results[STAGE]
    (folder / "figures").mkdir(exist_ok=True)
    write_atomically(folder / "table.md", table(run, scene, found))
    _draw(folder / "figures" / "map.png", run, scene, found)


def table(run: Run, scene: Scene, found: Mapping[str, Arrays]) -> str:
    """Measures of the judged part, in percent."""
    head = ["tokens", "head", "accuracy", "mIoU", "mF1", "kappa"]
    rows = []
    for model, how in ROWS:
        own = segmentation.measures(jnp.asarray(found[f"{model}-{how}"]["confusion"]))
        values = (own.accuracy, own.miou, own.mf1, own.kappa)
        rows.append([model.replace("_", " "), how, *(f"{100 * float(one):.1f}" for one in values)])
    matrix = found[f"{ROWS[0][0]}-{ROWS[0][1]}"]["confusion"]
    most = int(np.argmax(matrix.sum(1)))
    share = 100 * matrix.sum(1)[most] / matrix.sum()
    border, width = border_of(run, scene), scene.labels.shape[1]
    lines = [
        f"Learned from columns 0 to {border - 1}, judged on {border} to {width - 1} at date "
        f"{run.data.date}: {int(matrix.sum())} pixels with data and a label.",
        f"{NAMES[most]} everywhere would be right for {share:.1f} %.",
        "One scene: no interval, and no ranking of methods follows from it.",
    ]
    return markdown_table(head, rows) + "\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def _draw(path: Path, run: Run, scene: Scene, found: Mapping[str, Arrays]) -> None:
    image = scene.images[run.data.date].astype(float)
    shown = [name for name in ("B4", "B3", "B2") if name in scene.bands] or [scene.bands[0]] * 3
    color = image[..., places_of(scene.bands, shown, "scene")]
    # Each band by itself: air scatters blue light, so that all of a scene would be blue.
    low, high = np.quantile(color, [0.02, 0.98], axis=(0, 1))
    truth = np.where(scene.labels == segmentation.IGNORED, 0, scene.labels)
    panels = [("image", np.clip((color - low) / np.maximum(high - low, 1e-9), 0, 1))]
    panels.append(("land cover", COLORS[truth]))
    panels += [
        (f"{model.replace('_', ' ')}, {how}", COLORS[found[f"{model}-{how}"]["map"]])
        for model, how in ROWS
    ]
    figure = new_figure(10.4, 5.4)
    axes = figure.subplots(2, 4).reshape(-1)
    for panel, (name, picture) in zip(axes, panels, strict=False):
        panel.imshow(picture, interpolation="nearest")
        panel.axvline(border_of(run, scene) - 0.5, color="white", linewidth=1, linestyle="--")
        panel.set_title(name, fontsize=9)
    for panel in axes:
        panel.set(xticks=[], yticks=[])
    present = sorted(
        set(np.unique(truth)) | {c for own in found.values() for c in np.unique(own["map"])}
    )
    axes[-1].set_axis_off()
    for code in present:
        axes[-1].scatter([], [], color=COLORS[code], marker="s", label=NAMES[code])
    axes[-1].legend(loc="center left", frameon=False, fontsize=9)
    write_png(figure, path)

"""A scene from a file: tiles of its two parts, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxmethods import cli
from jaxmethods.errors import DataError
from jaxmethods.registry import parse
from jaxmethods.rsfm.recipes import scene

SMALL = {
    "method": "rsfm",
    "model": {
        **{"width": 16, "depth": 1, "heads": 2, "patch": 2},
        **{"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
    },
    "pretrain": {"steps": 2, "batch": 4},
    "evaluation": {"segmentation_steps": 2},
    "training": {"log_every": 1, "evaluate_every": 2, "checkpoint_every": 2},
}
NAMES = np.array(["B02", "B8A", "B03", "B04"])


def place(folder, **changes):
    """Two dates of 13 x 22 pixels; a corner without data, a row without labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 5000, (2, 13, 22, 4)).astype(np.uint16)
    images[:, :3, :3] = 0
    labels = rng.integers(1, 4, (13, 22)).astype(np.uint8)
    labels[5] = 0
    arrays = {"bands_dn": images, "band_names": NAMES, "lulc": labels} | changes
    np.savez(folder / "scene.npz", **arrays)
    values = {"scene": str(folder / "scene.npz"), "bands": ["B8A", "B2"], "tile": 8, "date": 1}
    return values, images, labels


def test_no_judged_pixel_is_in_a_tile_that_is_learned_from(tmp_path):
    values, images, labels = place(tmp_path)
    run = parse({**SMALL, "data": values}, "test")[0]
    whole, tiles = scene.read_tiles(run)
    border = scene.border_of(run, whole)
    assert border == 13
    np.testing.assert_array_equal(whole.images, images[..., [1, 0]])
    assert not whole.valid[:, :3, :3].any()
    assert np.all(whole.labels[labels == 0] == 255)
    left = {tuple(pixel) for pixel in images[:, :, :border, [1, 0]].reshape(-1, 2)}
    right = {tuple(pixel) for pixel in images[:, :, border:, [1, 0]].reshape(-1, 2)}
    learned, judged = (tiles.images[tiles.parts[part]] for part in ("train", "test"))
    assert {tuple(pixel) for pixel in learned.reshape(-1, 2)} == left
    assert {tuple(pixel) for pixel in judged.reshape(-1, 2)} == right


def test_pixels_that_are_no_numbers_have_no_data(tmp_path):
    _, images, _ = place(tmp_path)
    broken = images.astype(np.float32)
    broken[0, 7, 9, 1], broken[1, 8, 10, 0] = np.nan, np.inf
    place(tmp_path, bands_dn=broken)
    whole = scene.read_scene(tmp_path / "scene.npz", ("B8A", "B2"))
    assert np.isfinite(whole.images).all()
    expected = np.any(images[..., [1, 0]] != 0, axis=-1)
    expected[0, 7, 9], expected[1, 8, 10] = False, False
    # B8A is the broken band of the first pixel, B2 that of the second.
    np.testing.assert_array_equal(whole.valid, expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lulc": np.ones((3, 3), np.uint8)}, "expected bands_dn"),
        ({"band_names": np.array(["B02", "B03", "B04", "B05"])}, "B8A"),
        ({"bands_dn": np.ones((1, 6, 22, 4), np.uint16), "lulc": np.ones((6, 22))}, "data.tile"),
    ],
)
def test_what_is_wrong_with_a_scene_is_named(tmp_path, changes, expected):
    values, _, _ = place(tmp_path, **changes)
    with pytest.raises(DataError, match=expected):
        parse({**SMALL, "data": values}, "test")


@pytest.mark.slow
def test_a_scene_is_mapped_and_pixels_without_label_or_data_are_left_out(tmp_path):
    values, images, labels = place(tmp_path)
    (tmp_path / "small.yaml").write_text(json.dumps({**SMALL, "data": values}))
    out = tmp_path / "out"
    assert cli.main(["run", str(tmp_path / "small.yaml"), "--out", str(out), "--quiet"]) == 0
    seen = (labels > 0) & np.any(images[1][..., [1, 0]] != 0, axis=-1)
    table = (out / "table.md").read_text()
    assert f"{seen[:, 13:].sum()} pixels with data and a label" in table
    for model, head in scene.ROWS:
        assert f"| {model.replace('_', ' ')} | {head} |" in table
    assert (out / "figures" / "map.png").stat().st_size > 1000

"""A real Sentinel-2 patch from numbers of the sensor to a map: read, normalize, encode, segment."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.data.earth import normalization, sensors
from jaxmethods.files import read_npz
from jaxmethods.models import geovit
from jaxmethods.rsfm.evaluation import segmenter, tiles
from jaxmethods.rsfm.evaluation.measures import segmentation

PATCH = Path(os.environ.get("JAXMETHODS_SHARED", "/nowhere")) / "data/rs/sentinel2_l1c_slovenia.npz"
SIZE, CLASSES, TILE = 4, 11, 16
BANDS = ("B2", "B3", "B4", "B8", "B11", "B12")


@pytest.mark.slow
@pytest.mark.skipif(not PATCH.exists(), reason="needs JAXMETHODS_SHARED")
def test_a_map_of_a_real_scene():
    arrays = read_npz(PATCH)
    names = [str(name).replace("B0", "B") for name in arrays["band_names"]]
    places = sensors.places_of(names, BANDS, "Slovenia")
    scene = arrays["bands_dn"][3][..., places]
    labels = np.where(arrays["lulc"] == 0, segmentation.IGNORED, arrays["lulc"])
    statistics = normalization.dataset_statistics(scene[None], BANDS)
    pixels = jnp.asarray(normalization.normalize(scene, BANDS, "dataset", statistics))
    config = geovit.EncoderConfig(
        width=32, depth=1, heads=2, patch=SIZE, image_size=TILE, channels=len(BANDS)
    )
    params = geovit.init(jax.random.key(0), config)

    @jax.jit
    def tokens(images):
        encoded = geovit.encode(params, config, images)
        return jnp.concatenate([encoded.patches, geovit.patches.patchify(images, SIZE)], axis=-1)

    def cut(array):
        rows = [array[i : i + TILE, j : j + TILE] for i in range(0, 96, TILE) for j in STARTS]
        return jnp.stack([jnp.asarray(own) for own in rows])

    settings = {"patch": SIZE, "classes": CLASSES, "steps": 80, "rate": 0.03}
    head = segmenter.fit_segmenter(tokens(cut(pixels)), cut(labels), **settings)

    def model(images):
        return segmenter.segment(head, tokens(images), SIZE, CLASSES)

    logits = tiles.tiled_apply(model, pixels, TILE, TILE // 2)
    assert logits.shape == (*labels.shape, CLASSES)
    said = jnp.argmax(logits, axis=-1)
    matrix = segmentation.confusion(jnp.asarray(labels), said, CLASSES)
    assert matrix.sum() == np.sum(arrays["lulc"] > 0)
    own = segmentation.measures(matrix)
    most = np.bincount(arrays["lulc"].reshape(-1)).max() / np.sum(arrays["lulc"] > 0)
    assert own.accuracy > most  # better than forest everywhere
    assert np.isfinite([own.miou, own.mf1, own.kappa]).all()


STARTS = range(0, 96, TILE)

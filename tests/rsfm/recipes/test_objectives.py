"""Every objective of a run, from its field to a step that fits its images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.config import ConfigError
from jaxmethods.data.earth.scenes import BUILT, synthetic_scenes
from jaxmethods.rsfm.config import Run
from jaxmethods.rsfm.pretraining import learners
from jaxmethods.rsfm.pretraining.views import whole_views
from jaxmethods.rsfm.recipes import objectives, objects
from jaxmethods.rsfm.recipes.material import read_material

MODEL = {"width": 48, "depth": 1, "heads": 2, "patch": 4}
MODEL |= {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
OBJECTIVES = {
    "mae": {},
    "satmae_group": {},
    "satmae_temporal": {},
    "scale_mae": {"patch": 16, "mask_ratio": 0.5},
    "infonce": {},
    "clip": {},
}


def run_of(objective, **changes):
    bands = {"bands": ["B4", "B3", "B2"]} if objective == "scale_mae" else {}
    size = 32 if objective == "scale_mae" else 16
    model = MODEL | OBJECTIVES[objective] | {"objective": objective} | changes
    values = {"method": "rsfm", "model": model, "scenes": {"scenes": 40, "size": size} | bands}
    return Run.model_validate(values)


@pytest.fixture(scope="module")
def materials():
    return {
        name: read_material(run_of(own))
        for name, own in (("plain", "mae"), ("scale_mae", "scale_mae"))
    }


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_encoder_that_is_handed_on_reads_single_optical_images(objective, materials):
    """Nothing is compiled: the loss has a shape, and parameters are those of the later config."""
    run, material = run_of(objective), materials.get(objective, materials["plain"])
    config = objectives.pretraining_config(run, material)
    later = objectives.encoder_config(run, material)
    rows = material.parts["train"][:3]
    pixels = jax.tree.map(jnp.asarray, objectives.pixels(run, material, rows))
    learner = learners.learner_of(config, run.pretrain)

    def both(key):
        params = learner.init(key)
        loss = learner.loss(params, whole_views(pixels), key)
        return loss, objectives.handed_on(config, params)["encoder"]

    loss, encoder = jax.eval_shape(both, jax.random.key(0))
    assert loss.shape == ()
    expected = jax.eval_shape(lambda key: learners.init_encoder(key, later), jax.random.key(0))
    shapes = [jax.tree.map(lambda leaf: leaf.shape, own) for own in (encoder, expected)]
    assert shapes[0] == shapes[1]
    assert (later.image_size, later.channels) == material.images.shape[2:]


def test_dates_are_those_of_both_images(materials):
    own = objectives.pixels(run_of("satmae_temporal"), materials["plain"], np.arange(4))
    assert own.images.shape == (4, 2, 16, 16, 6)
    np.testing.assert_array_equal(own.timestamps[..., 0], 15)
    gap = (own.timestamps[:, 1, 1] - own.timestamps[:, 0, 1]) % 12
    assert set(gap.tolist()) <= {3, 4}


def test_captions_end_with_the_largest_id(materials):
    texts, config = objectives.captions_of(materials["plain"])
    last = texts.mask[:, 0].sum(1) - 1
    np.testing.assert_array_equal(
        np.take_along_axis(texts.ids[:, 0], last[:, None], 1)[:, 0], config.eos_token_id
    )
    assert texts.ids.max() == config.eos_token_id == config.vocab_size - 1


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        ("scale_mae", {"patch": 8}, "scale_mae needs patch 16, three bands and images"),
        ("satmae_group", {"groups": [["B2"]]}, "groups: expected a group for band B3"),
    ],
)
def test_images_that_an_objective_cannot_use_are_refused(objective, changes, message, materials):
    run, material = run_of(objective, **changes), materials.get(objective, materials["plain"])
    with pytest.raises(ConfigError, match=message) as error:
        objectives.pretraining_config(run, material)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("objective", ["satmae_temporal", "infonce", "clip"])
def test_what_only_scenes_have_is_named(objective, materials):
    bare = materials["plain"]._replace(scenes=None)
    with pytest.raises(ConfigError, match=f"{objective} needs .* of every place"):
        objectives.pretraining_config(run_of(objective), bare)


def test_positions_in_meters_need_the_size_of_a_pixel(materials):
    bare = materials["scale_mae"]._replace(scenes=None, gsd=None)
    with pytest.raises(ConfigError, match=r"data\.gsd: positions in meters"):
        objectives.pretraining_config(run_of("scale_mae"), bare)


def test_a_building_is_found_where_it_stands():
    scenes = synthetic_scenes(0, 4, 32)
    # Each map has the last building of its scene and nothing else.
    alone = np.zeros_like(scenes.labels)
    for place, corners in enumerate(scenes.boxes[:, -1]):
        x, y = np.meshgrid(np.arange(32) + 0.5, np.arange(32) + 0.5)
        inside = np.ones((32, 32), bool)
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            inside &= (end[0] - start[0]) * (y - start[1]) >= (end[1] - start[1]) * (x - start[0])
        alone[place][inside] = BUILT
    large = [place for place in range(4) if (alone[place] == BUILT).sum() >= 12]
    assert large
    found = objects.precision_of(alone[large], scenes.boxes[large, -1:])
    assert found > 0.7
    assert objects.precision_of(np.zeros((2, 8, 8), int), scenes.boxes[:2]) == 0

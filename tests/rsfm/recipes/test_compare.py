"""From a config to a table: generated scenes, folders, what is refused before anything is made."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmethods
from jaxmethods import cli, config
from jaxmethods.errors import UserError
from jaxmethods.registry import parse
from jaxmethods.rsfm.recipes import labels, material
from jaxmethods.training.checkpoints import Checkpoints
from tests.diagnosis import check_diagnosable
from tests.objectives import check_objectives
from tests.same_numbers import check_same_numbers

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "configs" / "rsfm" / "quickstart.yaml"
SHARED = Path(os.environ.get("JAXMETHODS_SHARED", "/nowhere")) / "data" / "rs"
SMALL = {
    "scenes": {"scenes": 60, "size": 16},
    "model": {
        **{"width": 16, "depth": 1, "heads": 2, "patch": 4},
        **{"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
    },
    "pretrain": {"steps": 3, "batch": 8},
    "finetune": {"shots": [2], "draws": 2, "steps": 2, "batch": 4},
    "evaluation": {
        "presets": ["scale_mae"],
        "poolings": ["mean"],
        "segmentation_steps": 3,
        "random_features": 16,
        "draws": 50,
    },
}
OFTEN = {"log_every": 1, "evaluate_every": 3, "checkpoint_every": 1}


def run(path, changes):
    values = config.merge(config.read_yaml(path), changes)
    return parse(values, "test")[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, with a checkpoint at every step."""
    folder = tmp_path_factory.mktemp("rsfm")
    path = folder / "small.json"
    path.write_text(json.dumps({"method": "rsfm", **SMALL, "training": OFTEN}))  # JSON is YAML
    assert cli.main(["run", str(path), "--out", str(folder / "out"), "--quiet"]) == 0
    return folder / "out"


@pytest.mark.slow
def test_a_run_on_generated_scenes(finished):
    out = finished
    check_same_numbers(out)
    check_diagnosable(jaxmethods.load_run(out))
    check_objectives(jaxmethods.load_run(out))
    stages = json.loads((out / "result.json").read_text())["stages"]
    assert {"pretrain", "comparison", "dense"} <= set(stages)
    found = {name: own["mean"] for name, own in stages["comparison"]["metrics"].items()}
    for name in ("mean_std", "imagestats", "random_convolutions"):
        assert 0 <= found[f"{name}_scale_mae_probe"] <= 1
        assert 0 <= found[f"{name}_scale_mae_probe_error"] < 0.5
    text = (out / "table.md").read_text()
    for name in (
        "imagestats",
        "permuted labels",
        "random convolutions",
        "random encoder-0",
        "mae-0",
    ):
        assert any(name in line and "scale_mae" in line for line in text.splitlines())
    figures = {own.name for own in (out / "figures").iterdir()}
    assert {"painted.png", "accuracies.png", "maps.png", "labels.png"} <= figures
    assert "retrieved.png" in figures
    assert "images found by" in text
    assert 0 <= found_in(stages, "retrieval", "imagestats_recall_at_1") <= 1
    assert 0 < found_in(stages, "objects", "truth_built_ap") <= 1
    assert {f"{way}_2" for way in labels.WAYS} == set(stages["labels"]["metrics"])


class Killed(BaseException):
    """Nothing of the run comes after it."""


@pytest.mark.slow
def test_a_run_that_dies_behind_a_checkpoint_ends_in_the_same_bits(finished, tmp_path, monkeypatch):
    values = {"method": "rsfm", **SMALL, "training": OFTEN}
    save = Checkpoints.save

    def save_and_die(self, step, *rest):
        save(self, step, *rest)
        if step == 2:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    with pytest.raises(Killed):
        jaxmethods.run(values, tmp_path / "run")
    monkeypatch.undo()
    resumed = jaxmethods.run(values, tmp_path / "run", resume=True)
    whole = jaxmethods.load_run(finished)
    jax.tree.map(
        np.testing.assert_array_equal, resumed.results["pretrain"], whole.results["pretrain"]
    )
    assert (tmp_path / "run" / "table.md").read_text() == (finished / "table.md").read_text()


def found_in(stages, stage, name):
    return stages[stage]["metrics"][name]["mean"]


@pytest.mark.slow
def test_an_encoder_that_learned_captions_names_classes_without_labels(tmp_path):
    path = tmp_path / "small.json"
    values = config.merge(SMALL, {"evaluation": {"segmentation_steps": 0}})
    values = config.merge(values, {"method": "rsfm", "model": {"objective": "clip"}})
    path.write_text(json.dumps(values))
    out = tmp_path / "out"
    assert cli.main(["run", str(path), "--out", str(out), "--quiet"]) == 0
    stages = json.loads((out / "result.json").read_text())["stages"]
    for name in ("accuracy", "image_to_text_recall_at_1", "text_to_image_recall_at_1"):
        assert 0 <= found_in(stages, "zero_shot", name) <= 1
    assert "clip_mean_scale_mae_probe" in stages["comparison"]["metrics"]
    text = (out / "table.md").read_text()
    assert "zero-shot accuracy" in text
    assert "clip-0" in text


def test_scenes_have_three_parts_and_only_pairs_that_can_be_learned():
    own = material.read_material(run(QUICKSTART, SMALL))
    rows = np.concatenate(list(own.parts.values()))
    assert len(set(rows.tolist())) == len(rows) <= 60
    counts = np.bincount(own.labels[own.parts["train"]], minlength=len(own.class_names))
    assert counts.min() >= material.FEWEST
    assert np.all(own.labels[rows] >= 0)
    pixels = own.normalized("train")[own.valid[own.parts["train"]]]
    np.testing.assert_allclose(pixels.mean(0), 0, atol=1e-4)


def test_a_folder_that_is_not_there_leaves_no_run(tmp_path):
    changes = {**SMALL, "data": {"path": str(tmp_path / "absent")}}
    with pytest.raises(UserError, match="no such folder or zip"):
        run(QUICKSTART, changes)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs JAXMETHODS_SHARED")
def test_baselines_of_eurosat_are_those_that_were_measured():
    """54 statistics and their first 6, standardized, with the optimum of a penalty: 71.2 and 64.9
    percent (2,000 to learn from, 1,000 to judge)."""
    from jaxmethods.rsfm.recipes.compare import recipe

    own = run(QUICKSTART, {"data": {"path": str(SHARED / "eurosat_rgb_subset.zip")}})
    made = recipe(own)
    features, comparison = made.stages[1:3]
    wanted = ("mean_std", "imagestats")
    parts = {part.name: part for part in features.parts({}, None)}
    results = {"features": {name: parts[name].compute() for name in wanted}}
    judged = {part.name: part for part in comparison.parts(results, None)}
    for name, expected in zip(wanted, (64.9, 71.2), strict=True):
        right = judged[f"{name}_scale_mae"].compute()["probe"]
        assert len(right) == 1000
        assert round(abs(100 * np.mean(right) - expected), 6) <= 1

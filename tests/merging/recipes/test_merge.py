"""Merging as a run: CLIP folders that others open, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import jaxmethods
from jaxmethods import cli, merging
from jaxmethods.config import read_yaml, validate
from jaxmethods.merging.recipes.merge import Run
from jaxmethods.models import clip
from jaxmethods.models.hub.tensor_files import TensorFiles
from tests.golden_files import FOLDER
from tests.permissions import check_others_can_read
from tests.same_numbers import check_same_numbers

ROOT = Path(__file__).parents[3]
CLIP = FOLDER / "merging" / "clip_tiny"


def perturbed(folder, out, seed):
    """A copy of a model folder with other weights."""
    rng = np.random.default_rng(seed)
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if np.issubdtype(value.dtype, np.floating):
            move = 0.05 * rng.normal(size=value.shape)
            tensors[name] = np.asarray(value + move, value.dtype)
    return copied(folder, out, tensors)


def copied(folder, out, tensors, **config):
    out.mkdir()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    content = json.loads((folder / "config.json").read_text()) | config
    (out / "config.json").write_text(json.dumps(content))
    return out


def run(tmp_path, out="out", **config):
    path = tmp_path / "merge.yaml"
    plain = json.loads(json.dumps({"method": "merge"} | config, default=str))
    path.write_text(yaml.safe_dump(plain))
    return cli.main(["run", str(path), "--out", str(tmp_path / out), "--quiet"])


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    return [perturbed(CLIP, folder / name, seed) for seed, name in enumerate(("one", "two"))]


@pytest.fixture(scope="module")
def merged_clip(experts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged")
    assert run(folder, base=CLIP, experts=experts, algorithm="ties", density=0.5) == 0
    return folder / "out" / "model"


def inputs():
    rng = np.random.default_rng(0)
    config = clip.load(CLIP).config
    side = config.vision.image_size
    pixels = rng.normal(size=(2, 3, side, side)).astype(np.float32)
    assert config.text is not None
    ids = rng.integers(3, config.text.vocab_size, (3, config.text.max_position_embeddings))
    return pixels, ids


@pytest.mark.slow
def test_a_merged_model_can_be_read_by_others(merged_clip):
    check_others_can_read(merged_clip)


@pytest.mark.slow
def test_merged_clip_folders_are_merged_parameters(merged_clip, experts):
    base, found = clip.load(CLIP), clip.load(merged_clip)
    stack = merging.stack_trees([clip.load(folder).params for folder in experts])
    expected = merging.ties(base.params, stack, density=0.5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found.params, expected
    )
    assert found.config == base.config


@pytest.mark.slow
def test_transformers_opens_a_merged_clip_with_the_same_outputs(merged_clip):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPModel.from_pretrained(merged_clip).eval()
    pixels, ids = inputs()
    with torch.no_grad():
        theirs = model(pixel_values=torch.tensor(pixels), input_ids=torch.tensor(ids))
    ours = clip.load(merged_clip)
    images = clip.image_features(
        ours.params, ours.config, jnp.asarray(pixels).transpose(0, 2, 3, 1)
    )
    texts = clip.text_features(ours.params, ours.config, jnp.asarray(ids))
    for found, expected in (
        (clip.normalize(images.features), theirs.image_embeds),
        (clip.normalize(texts.features), theirs.text_embeds),
    ):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_experts_of_the_vision_tower_alone_merge_into_the_whole_model(experts, tmp_path):
    vision = []
    for index, folder in enumerate(experts):
        tensors = load_file(folder / "model.safetensors")
        tower = {name: value for name, value in tensors.items() if name.startswith("vision_model")}
        content = json.loads((CLIP / "config.json").read_text())["vision_config"]
        vision.append(copied(CLIP, tmp_path / str(index), tower))
        content |= {"model_type": "clip_vision_model"}
        (vision[-1] / "config.json").write_text(json.dumps(content))
    exclude = ["^text_", "projection", "logit_scale"]
    given = {"base": CLIP, "experts": vision, "algorithm": "task_arithmetic", "exclude": exclude}
    assert run(tmp_path, coefficient=[0, 1], **given) == 0
    found = load_file(tmp_path / "out" / "model" / "model.safetensors")
    base, other = (load_file(f / "model.safetensors") for f in (CLIP, experts[1]))
    for name, value in found.items():
        source = other if name.startswith("vision_model") else base
        np.testing.assert_array_equal(value, source[name])


def test_fields_are_set_on_the_command_line_and_a_summary_is_printed(experts, tmp_path, capsys):
    path = tmp_path / "merge.yaml"
    path.write_text("method: merge\nalgorithm: ties\nbase: nowhere\nexperts: [nowhere]\n")
    overrides = [f"--base={CLIP}", "--experts", f"[{experts[0]}]", "--density", "1"]
    arguments = ["run", str(path), "--out", str(tmp_path / "out"), *overrides, "--coefficient=1"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    numbers = result["stages"]["model"]["metrics"]
    tensors = load_file(experts[0] / "model.safetensors")
    floating = [v for v in tensors.values() if np.issubdtype(v.dtype, np.floating)]
    assert numbers["merged"]["mean"] == len(floating)
    assert numbers["copied"]["mean"] == len(tensors) - len(floating)
    written = sum(v.nbytes for v in tensors.values()) / 1e9
    assert numbers["gigabytes_written"]["mean"] == pytest.approx(written)
    assert numbers["gigabytes_read"]["mean"] == pytest.approx(
        2 * sum(v.nbytes for v in floating) / 1e9
    )
    assert re.search(rf"merged +{len(floating)} *\n", shown)
    (line,) = [line for line in shown.splitlines() if line.startswith("stage=model step=1")]
    assert f"merged={len(floating)}" in line
    assert "gigabytes_written=" in line
    found = load_file(tmp_path / "out" / "model" / "model.safetensors")
    for name, value in load_file(experts[0] / "model.safetensors").items():
        np.testing.assert_array_equal(found[name], value)


def test_a_merge_runs_from_python_and_is_found_again(experts, tmp_path, capsys):
    given = {"method": "merge", "algorithm": "dare", "base": CLIP, "experts": experts, "seed": 3}
    run = jaxmethods.run(given, tmp_path / "out")
    assert run.results == {"model": tmp_path / "out" / "model"}
    check_same_numbers(tmp_path / "out")
    again = jaxmethods.load_run(tmp_path / "out")
    assert again.results == run.results
    assert again.config == run.config
    assert again.metrics["model"]["merged"] == run.metrics["model"]["merged"] > 0
    assert "\nseed: 3\n" in (again.results["model"] / "README.md").read_text()
    capsys.readouterr()
    assert cli.main(["evaluate", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("nothing was measured anew: no stage that trains is")
    assert cli.main(["report", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert cli.main(["compare", str(tmp_path / "out")]) == 0
    assert "gigabytes_written" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "merging").glob("merge_*.yaml")))
def test_configs_open_with_a_comment_and_say_every_parameter(path):
    assert path.read_text().startswith("# ")
    config = validate(Run, read_yaml(path), str(path))
    assert path.stem == f"merge_{config.algorithm}"
    assert config.settings.keys() <= read_yaml(path).keys()


def broken(tmp_path, experts, change, name="broken", **config):
    tensors = load_file(experts[0] / "model.safetensors")
    change(tensors)
    return copied(experts[0], tmp_path / name, tensors, **config)


def with_value(name, value):
    def change(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name].flat[3] = value

    return change


def reshaped(tensors):
    tensors["visual_projection.weight"] = np.zeros((3, 4), np.float32)


def quantized(tensors):
    tensors["visual_projection.weight"] = tensors["visual_projection.weight"].astype(np.int8)


NORM = "vision_model.pre_layrnorm.weight"
BROKEN = {
    "missing": (lambda t: t.pop(NORM), {}, rf"expert .*broken: .*{NORM} missing.*exclude"),
    "extra": (
        lambda t: t.update({"head.weight": np.zeros(2, np.float32)}),
        {},
        r"expert .*broken: .*got head\.weight too.*exclude",
    ),
    "shape": (reshaped, {}, r"visual_projection\.weight: expected shape \(20, 32\).*\(3, 4\)"),
    "kind": (quantized, {}, r"visual_projection\.weight: expected floating.*int8"),
    "architecture": (
        lambda t: None,
        {"model_type": "siglip"},
        r"expected model_type 'clip' like the base, got 'siglip'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("algorithm", ["task_arithmetic", "ties"])
def test_an_expert_that_does_not_fit_is_named(name, algorithm, experts, tmp_path, capsys):
    change, config, message = BROKEN[name]
    expert = broken(tmp_path, experts, change, **config)
    given = {"experts": [experts[1], expert], "algorithm": algorithm}
    refused(tmp_path, capsys, message, base=CLIP, **given)


def refused(tmp_path, capsys, message, **config):
    """One line, exit code 2, no run folder."""
    before = set(tmp_path.iterdir()) | {tmp_path / "merge.yaml"}
    fails(tmp_path, capsys, message, **config)
    assert set(tmp_path.iterdir()) == before


def fails(tmp_path, capsys, message, **config):
    """One line, exit code 2."""
    assert run(tmp_path, **config) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    assert re.search(message, lines[0]), lines[0]


def leaves_no_model(folder):
    """What a merge that failed halfway had written is gone."""
    names = {path.name for path in folder.iterdir()}
    assert "config.yaml" in names
    assert not [name for name in names if name.startswith((".partial", "model"))]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["task_arithmetic", "ties"])
def test_an_expert_that_is_not_finite_is_named_and_can_be_mended(
    algorithm, experts, tmp_path, capsys
):
    tensors = load_file(experts[0] / "model.safetensors")
    expert = broken(tmp_path, experts, with_value(NORM, np.nan))
    given = {"base": CLIP, "experts": [experts[1], expert], "algorithm": algorithm}
    message = rf"broken/model\.safetensors: {NORM}: expected finite.*1 NaN or infinite of 32"
    fails(tmp_path, capsys, message, **given)
    leaves_no_model(tmp_path / "out")
    save_file(tensors, expert / "model.safetensors", {"format": "pt"})
    arguments = ["run", str(tmp_path / "merge.yaml"), "--out", str(tmp_path / "out"), "--quiet"]
    assert cli.main([*arguments, "--resume"]) == 0
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_ctrl_c_leaves_no_half_of_a_model_and_resume_makes_it(experts, tmp_path, monkeypatch):
    given = {"base": CLIP, "experts": experts, "algorithm": "average"}
    written, write = [], TensorFiles.write

    def interrupted(files, name, values, start=0):
        written.append(name)
        if len(written) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        write(files, name, values, start)

    monkeypatch.setattr(TensorFiles, "write", interrupted)
    assert run(tmp_path, **given) == 130
    assert len(written) < 20
    leaves_no_model(tmp_path / "out")
    arguments = ["run", str(tmp_path / "merge.yaml"), "--out", str(tmp_path / "out"), "--quiet"]
    assert cli.main([*arguments, "--resume"]) == 0
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


WRONG = {
    "algorithm": ({"algorithm": "median"}, r"algorithm: expected one of .*ties.*got 'median'"),
    "field": ({"densty": 0.2}, r"densty: unknown field \(did you mean 'density'\?\)"),
    "parameter": (
        {"algorithm": "average", "density": 0.2},
        r"density: average has no such parameter \(it has: coefficient, normalize\)",
    ),
    "density": ({"density": 20}, r"density: .*from 0 to 1, or null, got 20"),
    "drop": ({"algorithm": "dare", "drop": 1}, r"drop: .*< 1, or null, got 1"),
    "epsilon": (
        {"algorithm": "della", "density": 0.1, "epsilon": 0.4},
        r"epsilon: expected density ± epsilon in \[0, 1\], got 0\.1 ± 0\.4",
    ),
    "coefficients": (
        {"coefficient": [0.1, 0.2, 0.3]},
        r"coefficient: expected one number, or one for each of the 2 experts",
    ),
    "one number": (
        {"algorithm": "pcb", "coefficient": [1, 2]},
        r"coefficient: pcb takes one number",
    ),
    "slerp": ({"algorithm": "slerp"}, r"experts: slerp takes 1, got 2"),
    "mergekit": (
        {"algorithm": "ties_mergekit", "merge": "max"},
        r"merge: ties_mergekit has no such parameter \(it has: coefficient, density\)",
    ),
    "no expert": ({"experts": []}, r"experts: .*at least 1"),
    "regex": ({"exclude": ["("]}, r"exclude: '\(' is not a regular expression"),
    "pattern": ({"exclude": ["nothing"]}, r"pattern 'nothing': no tensor of .* has such a name"),
    "depth": (
        {"rules": [{"pattern": "layers", "over_depth": [0, 1]}]},
        r"rules\.0\.over_depth: the pattern 'layers' has no group for the layer's number",
    ),
    "layer": (
        {"rules": [{"pattern": "(layers)", "over_depth": [0, 1]}]},
        r"rule '\(layers\)': its first group is no number in ",
    ),
    "both": ({"rules": [{"pattern": "layers"}]}, r"rules\.0: expected either coefficient or over"),
    "stock": (
        {"algorithm": "model_stock", "rules": [{"pattern": "layers", "coefficient": 1}]},
        r"rules: model_stock has no coefficient",
    ),
    "no folder": ({"base": "nowhere"}, r"base nowhere: expected a model folder, found nothing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_config_is_one_line(name, experts, tmp_path, capsys):
    change, message = WRONG[name]
    given = {"base": CLIP, "experts": experts, "algorithm": "ties"}
    refused(tmp_path, capsys, message, **(given | change))


def test_other_files_than_safetensors_are_refused(experts, tmp_path, capsys):
    given = {"base": CLIP, "algorithm": "ties"}
    pickled = tmp_path / "pytorch_model.bin"
    pickled.write_bytes(b"\x80\x04")
    refused(
        tmp_path, capsys, r"pytorch_model\.bin: pickled weights may", experts=[pickled], **given
    )
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    refused(tmp_path, capsys, r"notes\.txt: expected a model folder or", experts=[text], **given)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((experts[0] / "model.safetensors").read_bytes()[:-10])
    refused(tmp_path, capsys, r"cut\.safetensors: not a valid", experts=[cut], **given)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    pickled.rename(folder / pickled.name)
    refused(tmp_path, capsys, r"no \*\.safetensors.*pytorch_model", experts=[folder], **given)


def test_a_folder_that_holds_something_is_not_written_to(experts, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "keep.txt").write_text("mine")
    given = {"base": CLIP, "experts": experts, "algorithm": "average"}
    refused(tmp_path, capsys, r"out.*(is not empty|holds)", **given)
    assert (tmp_path / "out" / "keep.txt").read_text() == "mine"


def test_merged_weights_too_large_for_half_precision_are_refused(tmp_path, capsys):
    tensors = {"w": np.asarray([6e4], np.float16)}
    for name, value in (("base", 0), ("one", 6e4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        tensors = {"w": np.asarray([value], np.float16)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    given = {"base": tmp_path / "base", "experts": [tmp_path / "one"], "coefficient": 2}
    message = r"w: expected merged weights that fit float16"
    fails(tmp_path, capsys, message, algorithm="task_arithmetic", **given)
    leaves_no_model(tmp_path / "out")

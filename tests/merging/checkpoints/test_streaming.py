"""Merging checkpoints part by part: the same numbers as in memory, and folders that others open."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxmethods import cli, merging
from jaxmethods.merging.checkpoints import inputs as checkpoints
from jaxmethods.merging.checkpoints.streaming import merge_checkpoints
from jaxmethods.merging.config import MergeConfig, Rule
from jaxmethods.models import hub
from jaxmethods.numerics.order_statistics import kth_smallest, streamed_kth_smallest
from tests.programs import quick

TASKS = 3
SHAPES = {
    "embed.weight": (11, 6),
    "layers.0.mlp.weight": (8, 6),
    "layers.1.mlp.weight": (8, 6),
    "layers.2.mlp.weight": (8, 6),
    "layers.0.norm": (6,),
    "logit_scale": (),
}
BF16 = np.dtype(ml_dtypes.bfloat16)


def trees(tasks=TASKS, shapes=SHAPES, grid=None, seed=0):
    """A base and a list of experts; on a grid, sums of task vectors cancel now and then."""
    rng = np.random.default_rng(seed)

    def draw(scale) -> dict[str, Any]:
        tree = {name: scale * rng.normal(size=shape) for name, shape in shapes.items()}
        rounded = {k: np.round(v / grid) * grid if grid else v for k, v in tree.items()}
        return {name: np.asarray(value, np.float32) for name, value in rounded.items()}

    base = draw(1.0)
    experts = [
        {name: np.asarray(base[name] + move) for name, move in draw(0.1).items()}
        for _ in range(tasks)
    ]
    for tree in (base, *experts):
        tree["position_ids"] = np.arange(4)[None]
    return base, experts


def write(path, tree, files=1, config=None):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "test"} | (config or {})))
    (path / "tokenizer.json").write_text("{}")
    names = sorted(tree)
    weight_map = {}
    for index in range(files):
        name = f"model-{index}.safetensors" if files > 1 else "model.safetensors"
        save_file({n: tree[n] for n in names[index::files]}, path / name, {"format": "pt"})
        weight_map |= dict.fromkeys(names[index::files], name)
    if files > 1:
        (path / hub.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def written(tmp_path, base, experts, **options):
    """Paths for a `MergeConfig`."""
    paths = [write(tmp_path / f"expert{i}", tree, **options) for i, tree in enumerate(experts)]
    return {"base": write(tmp_path / "base", base, **options), "experts": tuple(paths)}


def merged(tmp_path, paths, name="out", **config):
    merge_checkpoints(MergeConfig(**paths, **config), tmp_path / name)
    folder = hub.open_folder(tmp_path / name)
    return {tensor: np.array(folder.view(tensor)) for tensor in folder.tensors}


def in_memory(base, experts):
    return jax.tree.map(jnp.asarray, base), merging.stack_trees(experts)


def assert_same(one, other, exact=True):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if exact:
            np.testing.assert_array_equal(value, other[name], err_msg=name)
        else:
            np.testing.assert_allclose(value, other[name], rtol=2e-6, atol=2e-7, err_msg=name)


KEY = jax.random.key(5)
WEIGHTS = (0.2, 0.5, 0.4)


def dared(base, stack, c, **options):
    sparse = merging.dare(KEY, merging.task_vectors(base, stack), 0.4, **options)
    return merging.apply_task_vectors(base, sparse, c)


def of_vectors(thin):
    return lambda base, stack: merging.apply_task_vectors(
        base, thin(merging.task_vectors(base, stack)), jnp.asarray(WEIGHTS)
    )


METHODS = {
    "average": ({}, lambda base, stack: merging.average(stack)),
    "average with weights": (
        {"coefficient": WEIGHTS},
        lambda base, stack: merging.average(stack, jnp.asarray(WEIGHTS), normalize=True),
    ),
    "average not normalized": (
        {"coefficient": WEIGHTS, "normalize": False},
        lambda base, stack: merging.average(stack, jnp.asarray(WEIGHTS)),
    ),
    "task_arithmetic": (
        {"coefficient": WEIGHTS},
        lambda base, stack: merging.task_arithmetic(base, stack, jnp.asarray(WEIGHTS)),
    ),
    "ties": ({}, merging.ties),
    "ties of means, dense": (
        {"density": 1, "merge": "mean", "coefficient": WEIGHTS},
        lambda base, stack: merging.ties(
            base, stack, density=1, merge="mean", coefficients=jnp.asarray(WEIGHTS)
        ),
    ),
    "ties of nothing": (
        {"density": 0},
        lambda base, stack: merging.ties(base, stack, density=0),
    ),
    "ties per leaf": (
        {"density": 0.4, "scope": "leaf", "merge": "max"},
        lambda base, stack: merging.ties(base, stack, density=0.4, scope="leaf", merge="max"),
    ),
    "ties_mergekit": (
        {"density": 0.4, "coefficient": WEIGHTS},
        lambda base, stack: merging.ties(
            base, stack, density=0.4, flavor="mergekit", coefficients=jnp.asarray(WEIGHTS)
        ),
    ),
    "dare": (
        {"drop": 0.4, "seed": 5},
        lambda base, stack: dared(base, stack, 0.3),
    ),
    "dare of matrices": (
        {"drop": 0.4, "seed": 5, "rescale": False, "matrices_only": True},
        lambda base, stack: dared(
            base, stack, 0.3, rescale=False, where=lambda path, leaf: leaf.ndim >= 2
        ),
    ),
    "dare_ties": (
        {"drop": 0.4, "seed": 5, "density": 0.3},
        lambda base, stack: merging.dare_ties(KEY, base, stack, 0.4, density=0.3),
    ),
    "dare_ties per leaf": (
        {"drop": 0.4, "seed": 5, "scope": "leaf", "merge": "mean"},
        lambda base, stack: merging.dare_ties(KEY, base, stack, 0.4, scope="leaf", merge="mean"),
    ),
    "breadcrumbs": (
        {"density": 0.6, "gamma": 0.1, "coefficient": WEIGHTS},
        of_vectors(lambda tau: merging.breadcrumbs(tau, 0.6, 0.1)),
    ),
    "della": (
        {"seed": 5, "coefficient": WEIGHTS},
        of_vectors(lambda tau: merging.della(KEY, tau, 0.5, 0.1)),
    ),
    "pcb": ({"ratio": 0.3}, lambda base, stack: merging.pcb(base, stack, 0.3)),
    "model_stock": ({}, merging.model_stock),
    "tsv": ({}, merging.tsv_merge),
    "iso_c": ({"coefficient": 0.7}, lambda base, stack: merging.iso_c(base, stack, 0.7)),
}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Trees whose task vectors cancel exactly at some entries, and folders of them."""
    base, experts = trees(grid=2.0**-6)
    return base, experts, written(tmp_path_factory.mktemp("grid"), base, experts, files=2)


@pytest.mark.parametrize("name", quick(METHODS, "average", "task_arithmetic", "ties"))
def test_streamed_merges_are_those_in_memory(name, grid, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PART", 13)
    base, experts, paths = grid
    config, expected = METHODS[name]
    found = merged(tmp_path, paths, algorithm=name.split()[0], **config)
    assert_same(found, expected(*in_memory(base, experts)), exact="ties" in name)
    assert_same(found, expected(*in_memory(base, experts)), exact=False)


def test_slerp_of_checkpoints_is_that_in_memory(tmp_path):
    base, (expert,) = trees(tasks=1)
    paths = written(tmp_path, base, [expert])
    found = merged(tmp_path, paths, algorithm="slerp", coefficient=0.3)
    expected = merging.slerp(*jax.tree.map(jnp.asarray, (base, expert)), 0.3)
    assert_same(found, expected, exact=False)


SINGLE = {
    "average": {},
    "task_arithmetic": {"coefficient": 1},
    "ties": {"coefficient": 1, "density": 1},
    "dare_ties": {"coefficient": 1, "drop": 0},
    "model_stock": {},
    "slerp": {"coefficient": 1},
}


@pytest.mark.parametrize("algorithm", SINGLE)
def test_one_expert_alone_comes_out_bit_for_bit(algorithm, tmp_path):
    base, (expert,) = trees(tasks=1)
    paths = written(tmp_path, base, [expert])
    assert_same(merged(tmp_path, paths, algorithm=algorithm, **SINGLE[algorithm]), expert)


@pytest.mark.parametrize(
    "name", [n for n in METHODS if not n.startswith(("dare", "della", "ties of nothing"))]
)
def test_the_order_of_the_folders_does_not_matter(name, grid, tmp_path):
    _, _, paths = grid
    config = dict(METHODS[name][0])
    one = merged(tmp_path, paths, "one", algorithm=name.split()[0], **config)
    order = [2, 0, 1]
    if isinstance(config.get("coefficient"), tuple):
        config["coefficient"] = tuple(config["coefficient"][i] for i in order)
    other_paths = paths | {"experts": tuple(paths["experts"][i] for i in order)}
    other = merged(tmp_path, other_paths, "other", algorithm=name.split()[0], **config)
    for tensor, value in one.items():
        np.testing.assert_allclose(value, other[tensor], rtol=1e-6, atol=2e-6, err_msg=tensor)


@pytest.mark.slow
def test_global_ties_of_ten_million_parameters_is_bit_for_bit_that_in_memory(tmp_path):
    shapes = {"embed": (5000, 1000), "layers.0": (2000, 2000), "layers.1": (1000, 1000), "b": (77,)}
    base, experts = trees(2, shapes)
    found = merged(tmp_path, written(tmp_path, base, experts), algorithm="ties", coefficient=0.4)
    assert_same(found, merging.ties(*in_memory(base, experts), coefficients=0.4))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=3), st.integers(0, 10_000))
@settings(max_examples=15)
def test_order_statistics_of_parts_equal_a_sort(ranks, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, 60)).astype(np.float32)
    values[:, rng.integers(0, 60, 20)] = rng.choice([0.0, -0.0, 1.0, -1e30, 1e-40], 20)
    parts = [jnp.asarray(part) for part in np.split(values, [7, 30], axis=1)]
    found = streamed_kth_smallest(lambda: parts, ranks)
    ordered = np.sort(values, axis=1)
    np.testing.assert_array_equal(found, [ordered[:, rank - 1] for rank in ranks])


@pytest.mark.slow
def test_quantiles_of_a_leaf_too_long_for_float32_indices_are_exact():
    """The rank 2^24 + 1 is no float32."""
    size = (1 << 24) + 2
    values = jnp.arange(size, dtype=jnp.int32)
    leaf = jax.lax.bitcast_convert_type(values[::-1] + (1 << 23), jnp.float32)[None]
    rank = 2**24 + 1
    expected = np.asarray([rank - 1 + (1 << 23)], np.int32).view(np.float32)
    np.testing.assert_array_equal(kth_smallest([leaf], rank), expected)
    np.testing.assert_array_equal(streamed_kth_smallest(lambda: [leaf], [rank])[0], expected)
    pruned = merging.magnitude_prune(leaf, 0.9)
    assert int(jnp.count_nonzero(pruned)) == size - (int(0.9 * (size - 1)) + 1)


def test_masks_follow_the_seed_and_the_name(grid, tmp_path):
    base, experts, paths = grid
    config = {"algorithm": "dare", "drop": 0.5}
    one = merged(tmp_path, paths, "one", seed=3, **config)
    assert_same(one, merged(tmp_path, paths, "again", seed=3, **config))
    other = merged(tmp_path, paths, "other", seed=4, **config)
    assert (one["embed.weight"] != other["embed.weight"]).any()
    key = jax.random.key(3)
    stack = jnp.stack([expert["embed.weight"] for expert in experts])
    alone = merging.dare_mask(key, {"embed": {"weight": stack}})
    tree = merging.dare_mask(key, in_memory(base, experts)[1])
    np.testing.assert_array_equal(alone["embed"]["weight"], tree["embed.weight"])
    two = merging.dare_mask(key, merging.stack_trees(experts[:2]))
    np.testing.assert_array_equal(two["embed.weight"], tree["embed.weight"][:2])


def test_names_choose_coefficients_and_exclude_tensors(tmp_path):
    base, experts = trees()
    for index, expert in enumerate(experts):  # heads of their own, in shapes of their own
        expert["head.weight"] = np.ones((index + 2, 6), np.float32)
    del experts[0]["embed.weight"]
    paths = written(tmp_path, base, experts)
    rules = (
        Rule(pattern="logit_scale", coefficient=0),
        Rule(pattern=r"layers[.](\d+)[.]mlp", over_depth=(0.0, 1.0)),
    )
    found = merged(
        tmp_path,
        paths,
        algorithm="task_arithmetic",
        coefficient=(1, 0, 0),
        rules=rules,
        exclude=("^head", "^embed"),
    )
    assert found.keys() == base.keys()
    for name in ("embed.weight", "logit_scale", "layers.0.mlp.weight", "position_ids"):
        np.testing.assert_array_equal(found[name], base[name])
    np.testing.assert_array_equal(found["layers.0.norm"], experts[0]["layers.0.norm"])
    for layer, expected in ((1, 0.5), (2, 1.0)):
        name = f"layers.{layer}.mlp.weight"
        stack = jnp.stack([e[name] for e in experts])
        np.testing.assert_allclose(
            found[name],
            merging.task_arithmetic(jnp.asarray(base[name]), stack, expected),
            rtol=1e-6,
        )


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BF16], ids=str)
def test_other_types_are_merged_in_float32_and_come_out_in_the_base_s(dtype, tmp_path):
    base, experts = trees()

    def cast(tree, to):
        return {n: v.astype(to) if v.dtype == np.float32 else v for n, v in tree.items()}

    low, (first, *rest) = cast(base, dtype), experts
    mixed = [cast(first, dtype), *rest]
    found = merged(tmp_path, written(tmp_path, low, mixed), algorithm="average")
    for name in SHAPES:
        stack = jnp.stack([jnp.asarray(expert[name], jnp.float32) for expert in mixed])
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(found[name], np.asarray(merging.average(stack).astype(dtype)))


def test_a_file_alone_is_a_checkpoint_too(tmp_path):
    base, experts = trees()
    paths = written(tmp_path, base, experts)
    files = {
        "base": paths["base"] / "model.safetensors",
        "experts": tuple(path / "model.safetensors" for path in paths["experts"]),
    }
    merge_checkpoints(MergeConfig(**files, algorithm="ties"), tmp_path / "files")
    found = load_file(tmp_path / "files" / "model.safetensors")
    assert_same(found, merged(tmp_path, paths, algorithm="ties"))


@pytest.mark.parametrize(
    "given",
    [
        {"algorithm": "dare_ties", "drop": 0.3, "seed": 7},
        {"algorithm": "ties_mergekit", "coefficient": WEIGHTS},
        {
            "algorithm": "average",
            "rules": (Rule(pattern=r"layers[.](\d+)[.]mlp", over_depth=(0.1, 1)),),
            "exclude": ("embed",),
        },
    ],
    ids=lambda given: given["algorithm"],
)
def test_the_result_has_the_base_s_files_and_a_card_that_makes_it_again(given, grid, tmp_path):
    _, _, paths = grid
    first = merged(tmp_path, paths, **given)
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == {
        "README.md",
        *(file.name for file in paths["base"].iterdir()),
    }
    assert json.loads((out / "config.json").read_text()) == {"model_type": "test"}
    text = (out / "README.md").read_text()
    config = tmp_path / "again.yaml"
    config.write_text(text.split("```yaml\n")[1].split("```")[0])
    assert cli.main(["run", str(config), "--out", str(tmp_path / "again"), "--quiet"]) == 0
    again = hub.open_folder(tmp_path / "again" / "model")
    assert_same(first, {name: again.view(name) for name in again.tensors})
    for path in (paths["base"], *paths["experts"]):
        for file in path.glob("*.safetensors"):
            assert hashlib.sha256(file.read_bytes()).hexdigest() in text


MEASURED = """
import resource, sys
from pathlib import Path
from jaxmethods.merging.config import MergeConfig
from jaxmethods.merging.checkpoints.streaming import merge_checkpoints
folder = Path(sys.argv[1])
for size in ("small", "large"):
    experts = [folder / size / "model.safetensors"] * 8
    config = MergeConfig(base=experts[0], experts=experts, algorithm="task_arithmetic", card=False)
    merge_checkpoints(config, folder / f"{size}-out")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_checkpoints(tmp_path):
    """Eight times the parameters take (almost) the same memory, far less than they are."""
    rng = np.random.default_rng(0)
    layer = rng.normal(size=(2048, 2048)).astype(np.float32)
    for size, layers in (("small", 1), ("large", 8)):
        (tmp_path / size).mkdir()
        tensors = {f"layers.{i}": layer for i in range(layers)}
        save_file(tensors, tmp_path / size / "model.safetensors")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    command = [sys.executable, "-c", MEASURED, str(tmp_path)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    small, large = (int(line) * 1024 for line in output.stdout.split())
    experts = 8 * 8 * layer.nbytes
    assert large - small < experts / 8

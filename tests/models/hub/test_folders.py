"""Folders of weights: what is written is read back, and what is wrong is one clear error."""

from __future__ import annotations

import json
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmethods.models.hub import (
    HubError,
    Tensor,
    linear,
    open_folder,
    read_params,
    whole,
    write_folder,
)
from tests.permissions import check_others_can_read

LAYERS = 3
TABLE = [
    whole("embed.weight", "embed", (7, 4)),
    linear("blocks.{}.up.weight", "blocks/up/kernel", 4, 6, LAYERS),
    Tensor(
        "blocks.{}.qk.weight",
        (8, 4),
        ("blocks/query/kernel", "blocks/key/kernel"),
        LAYERS,
        split=lambda tensor: [tensor[:4].T, tensor[4:].T],
        join=lambda leaves: np.concatenate([leaf.T for leaf in leaves]),
    ),
]
SHAPES = {
    "embed": jax.ShapeDtypeStruct((7, 4), jnp.float32),
    "blocks": {
        "up": {"kernel": jax.ShapeDtypeStruct((LAYERS, 4, 6), jnp.float32)},
        "query": {"kernel": jax.ShapeDtypeStruct((LAYERS, 4, 4), jnp.float32)},
        "key": {"kernel": jax.ShapeDtypeStruct((LAYERS, 4, 4), jnp.float32)},
    },
}


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), SHAPES)


@pytest.fixture
def folder(tmp_path, params):
    write_folder(tmp_path / "model", {"model_type": "toy"}, TABLE, params)
    return tmp_path / "model"


def assert_equal_trees(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_written_folder_can_be_read_by_others(folder):
    check_others_can_read(folder)


@pytest.mark.parametrize("largest_file", [1, 300, 2**30])
def test_what_is_written_is_read_back(tmp_path, params, largest_file):
    config = {"model_type": "toy", "width": 4}
    write_folder(tmp_path / "model", config, TABLE, params, largest_file=largest_file)
    folder = open_folder(tmp_path / "model")
    assert folder.config == config
    assert (
        len(list((tmp_path / "model").glob("*.safetensors")))
        == ({1: 7, 300: 4, 2**30: 1}[largest_file])
    )
    assert_equal_trees(read_params(folder, TABLE, SHAPES), params)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # nothing half-written is left


def test_weights_are_stored_in_the_layout_of_linear_layers(folder, params):
    stored = open_folder(folder).view("blocks.1.up.weight")
    np.testing.assert_array_equal(stored, params["blocks"]["up"]["kernel"][1].T)


@pytest.mark.parametrize("stored", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_every_float_type_is_read_and_converted(tmp_path, params, stored):
    rounded = jax.tree.map(lambda leaf: leaf.astype(stored), params)
    write_folder(tmp_path / "model", {}, TABLE, rounded)
    folder = open_folder(tmp_path / "model")
    assert_equal_trees(read_params(folder, TABLE, SHAPES, dtype=None), rounded)
    expected = jax.tree.map(lambda leaf: leaf.astype(np.float32), rounded)
    assert_equal_trees(read_params(folder, TABLE, SHAPES, dtype=jnp.float32), expected)


def test_tokenizer_files_are_copied_along(tmp_path, folder, params):
    (folder / "tokenizer.json").write_text("{}")
    write_folder(tmp_path / "copy", {}, TABLE, params, extra_files=folder)
    assert (tmp_path / "copy" / "tokenizer.json").read_text() == "{}"


def test_a_folder_that_holds_something_is_not_overwritten(folder, params):
    with pytest.raises(HubError, match="is there already"):
        write_folder(folder, {}, TABLE, params)


def test_parameters_of_a_wrong_shape_are_not_written(tmp_path, params):
    params["embed"] = params["embed"][:3]
    with pytest.raises(HubError, match=r"embed.weight: expected parameters of shape \(7, 4\)"):
        write_folder(tmp_path / "model", {}, TABLE, params)
    assert not list(tmp_path.iterdir())


def test_parameters_that_no_tensor_holds_are_not_left_out_in_silence(tmp_path, params):
    params["blocks"]["up"]["lora_a"] = np.zeros((LAYERS, 4, 1), np.float32)
    with pytest.raises(HubError, match=r"got blocks/up/lora_a too \(adapters are merged first"):
        write_folder(tmp_path / "model", {}, TABLE, params)
    del params["blocks"]["up"]
    with pytest.raises(HubError, match="blocks/up/kernel missing"):
        write_folder(tmp_path / "model", {}, TABLE, params)
    assert not list(tmp_path.iterdir())


def rewrite(folder, change):
    """Rewrites the folder's one file with `change(tensors)`."""
    opened = open_folder(folder)
    tensors = {name: np.array(opened.view(name)) for name in opened.tensors}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_extra_and_misshapen_tensors_are_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"stray.weight": np.zeros(2, np.float32)}))
    with pytest.raises(HubError, match="no use for: stray"):
        read_params(open_folder(folder), TABLE, SHAPES)
    read_params(open_folder(folder), TABLE, SHAPES, ignore=lambda name: name == "stray.weight")

    rewrite(folder, lambda tensors: [tensors.pop(f"blocks.{layer}.up.weight") for layer in (0, 2)])
    with pytest.raises(HubError, match=r"missing: blocks.0.up.weight, blocks.2.up.weight"):
        read_params(open_folder(folder), TABLE, SHAPES)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.zeros((6, 4), np.float32), r"embed.weight: expected shape \(7, 4\), got \(6, 4\)"),
        (np.zeros((7, 4), np.int8), "expected floating-point weights, got int8"),
    ],
)
def test_a_wrong_tensor_is_named(folder, tensor, message):
    rewrite(folder, lambda tensors: tensors.update({"embed.weight": tensor}))
    with pytest.raises(HubError, match=message):
        read_params(open_folder(folder), TABLE, SHAPES)


def test_folders_that_are_none_are_named(tmp_path):
    with pytest.raises(HubError, match="not a folder"):
        open_folder(tmp_path / "absent")
    with pytest.raises(HubError, match=r"config.json: cannot be read"):
        open_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(HubError, match=r"config.json: not valid JSON"):
        open_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(HubError, match=r"no \*.safetensors file; pytorch_model.bin may run code"):
        open_folder(tmp_path)


def header(**entries):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95not a header",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        header(w={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}),
        header(w={"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}),
        header(w={"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}) + bytes(4),
        header(w={"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}) + bytes(4),
        header(w=3),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(HubError, match=r"model.safetensors: not a valid safetensors file"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "expected a weight_map"),
        ({"weight_map": {"w": "../../etc/passwd"}}, "expected names of files beside it"),
        ({"weight_map": {"w": "absent.safetensors"}}, "absent.safetensors: cannot be read"),
        ({"weight_map": {"w": "model-1.safetensors"}}, "names w, which no file holds"),
    ],
)
def test_an_index_that_does_not_fit_is_an_error(folder, index, message):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(HubError, match=message):
        open_folder(folder)

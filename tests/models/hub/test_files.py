"""Which files of a model folder count, which headers are valid, and what types weights keep."""

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
    companions,
    open_file,
    open_folder,
    read_params,
    whole,
    write_folder,
)

INDEX = "model.safetensors.index.json"


def write(folder, file, **tensors):
    """A safetensors file of numbers, in a folder with a config."""
    folder.mkdir(exist_ok=True)
    if not (folder / "config.json").is_file():
        (folder / "config.json").write_text("{}")
    save_file({name: np.float32([value]) for name, value in tensors.items()}, folder / file)


def index(folder, name=INDEX, **weight_map):
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def values(folder):
    opened = open_folder(folder)
    return {name: float(opened.view(name)[0]) for name in opened.tensors}


def test_the_single_file_counts_whatever_lies_beside_it(tmp_path):
    write(tmp_path, "model.safetensors", w=1)
    write(tmp_path, "model.fp16.safetensors", w=2, extra=2)
    write(tmp_path, "consolidated.safetensors", w=3)
    assert values(tmp_path) == {"w": 1}
    write(tmp_path, "model-00001-of-00001.safetensors", w=4)
    index(tmp_path, w="model-00001-of-00001.safetensors")
    assert values(tmp_path) == {"w": 1}
    index(tmp_path, w="gone.safetensors")
    assert values(tmp_path) == {"w": 1}


def test_without_the_single_file_the_index_says_which_files_count(tmp_path):
    write(tmp_path, "model-00001-of-00002.safetensors", v=1, w=1)
    write(tmp_path, "model-00002-of-00002.safetensors", w=2, x=2)
    write(tmp_path, "model-00003-of-00003.safetensors", y=3)
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index(tmp_path, v=files[0], w=files[0], x=files[1])
    # A tensor of two files is the last one's, as in transformers.
    assert values(tmp_path) == {"v": 1, "w": 2, "x": 2}


def test_a_config_that_names_its_weights_is_followed(tmp_path):
    write(tmp_path, "model.safetensors", w=1)
    write(tmp_path, "ema.safetensors", w=2)
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": "ema.safetensors"}))
    assert values(tmp_path) == {"w": 2}
    index(tmp_path, "ema.safetensors.index.json", w="model.safetensors")
    named = {"transformers_weights": "ema.safetensors.index.json"}
    (tmp_path / "config.json").write_text(json.dumps(named))
    assert values(tmp_path) == {"w": 1}
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": "../w.safetensors"}))
    with pytest.raises(HubError, match="transformers_weights: expected the name of a file"):
        open_folder(tmp_path)


def test_a_complete_set_of_files_is_read_without_its_index(tmp_path):
    write(tmp_path, "model-00001-of-00002.safetensors", v=1)
    with pytest.raises(HubError, match="expected all 2 files of the weights, got model-00001"):
        open_folder(tmp_path)
    write(tmp_path, "model-00002-of-00002.safetensors", w=2)
    assert values(tmp_path) == {"v": 1, "w": 2}
    write(tmp_path, "model-00001-of-00003.safetensors", w=3)
    with pytest.raises(HubError, match="expected all"):
        open_folder(tmp_path)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "optimizer.safetensors"])
def test_a_file_of_another_name_is_not_taken_for_the_weights(tmp_path, name):
    write(tmp_path, name, w=1)
    with pytest.raises(HubError, match=rf"neither model.safetensors nor .*{name}"):
        open_folder(tmp_path)


def test_an_adapter_beside_the_weights_is_not_left_out_in_silence(tmp_path):
    write(tmp_path, "model.safetensors", w=1)
    write(tmp_path, "adapter_model.safetensors", w=2)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(HubError, match=r"adapter_config\.json"):
        open_folder(tmp_path)


def test_a_missing_part_is_named(tmp_path):
    write(tmp_path, "model-00001-of-00002.safetensors", v=1)
    index(tmp_path, v="model-00001-of-00002.safetensors", w="model-00002-of-00002.safetensors")
    with pytest.raises(HubError, match=r"model-00002-of-00002\.safetensors: cannot be read"):
        open_folder(tmp_path)


def test_templates_and_code_are_companions_and_weights_are_not(tmp_path):
    write(tmp_path, "model.safetensors", w=1)
    index(tmp_path, w="model.safetensors")
    (tmp_path / "additional_chat_templates").mkdir()
    kept = ["additional_chat_templates/tool_use.jinja", "chat_template.jinja", "modeling_x.py"]
    kept += ["qwen.tiktoken", "tokenizer.json"]
    for name in [*kept, "optimizer.pt", "pytorch_model.bin"]:
        (tmp_path / name).write_text(name)
    assert [str(file) for file in companions(tmp_path)] == kept
    write_folder(
        tmp_path / "copy",
        {},
        [whole("w", "w", (1,))],
        {"w": np.float32([1])},
        extra_files=tmp_path,
    )
    assert [str(file) for file in companions(tmp_path / "copy")] == kept
    assert (tmp_path / "copy" / kept[0]).read_text() == kept[0]


def entry(shape, offsets, dtype="F32", **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


ONE = entry([1], [0, 4])
TEXT = json.dumps({"a": ONE})


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry([1], [0.0, 4.0])}, 4),
        ({"a": entry([1.0], [0, 4])}, 4),
        ({"a": entry([1.5], [0, 4])}, 4),
        ({"a": entry([True], [0, 4])}, 4),
        ({"a": entry(["1"], [0, 4])}, 4),
        ({"a": entry([-1], [0, 4])}, 4),
        ({"a": entry([2**62, 4], [0, 4])}, 4),
        ({"a": entry([1], [4, 0])}, 4),
        ({"a": entry([1], [-4, 0])}, 4),
        ({"a": entry([1], [0, 4, 8])}, 4),
        ({"a": entry([1], [0, 4], "F31")}, 4),
        ({"a": entry([1], [0, 4], "f32")}, 4),
        ({"a": entry([1], [4, 8])}, 8),  # a hole at the beginning
        ({"a": ONE, "b": entry([1], [8, 12])}, 12),  # between two tensors
        ({"a": ONE}, 8),  # behind the last one
        ({"a": ONE}, 2),
        ({"a": entry([2], [0, 8]), "b": entry([2], [0, 8])}, 8),
        ({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, 12),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4),
        ({"a": ONE, "__metadata__": {"step": 1}}, 4),
        ({"a": ONE, "__metadata__": ["pt"]}, 4),
        (b'{"a\xff": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', 4),
        (TEXT.replace('"F32"', '"F32", "dtype": "I32"').encode(), 4),
        (TEXT.encode() + b"\0", 4),
        (b"\xef\xbb\xbf" + TEXT.encode(), 4),
        (b'{"a": NaN}', 0),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 0),
        (b"[]", 0),
    ],
)
def test_a_header_that_the_format_forbids_is_refused(tmp_path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    with pytest.raises(HubError, match=r"x.safetensors: not a valid safetensors file") as raised:
        open_file(tmp_path / "x.safetensors")
    assert len(str(raised.value).splitlines()) == 1


def test_headers_that_the_format_allows_are_read(tmp_path):
    header = {
        "b": entry([2, 2], [4, 20]),
        "a": entry([], [0, 4]),
        "empty": entry([0, 3], [20, 20]),
        "__metadata__": {"format": "pt"},
    }
    text = json.dumps(header).encode() + b"   "
    data = np.arange(5, dtype=np.float32)
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data.tobytes())
    opened = open_file(tmp_path / "x.safetensors")
    assert opened.view("a") == 0
    np.testing.assert_array_equal(opened.view("b"), [[1, 2], [3, 4]])
    assert opened.view("empty").shape == (0, 3)


def test_a_config_of_endless_depth_is_refused(tmp_path):
    write(tmp_path, "model.safetensors", w=1)
    (tmp_path / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(HubError, match=r"config\.json: not valid JSON"):
        open_folder(tmp_path)


LAYERS = [whole("{}.w", "w", (1,), layers=2)]
TREE = {"w": jax.ShapeDtypeStruct((2, 1), jnp.float32)}


def stored(tmp_path, first, second):
    save_file({"0.w": first, "1.w": second}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return open_folder(tmp_path)


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (np.float16([1]), np.float32([1e6]), np.float32),
        (np.float32([1e6]), np.float16([1]), np.float32),
        (np.array([2.0**20], ml_dtypes.bfloat16), np.float32([1 + 2**-20]), np.float32),
        # Neither holds the other: 1e6 is no float16, 1 + 2^-10 no bfloat16.
        (np.float16([1 + 2**-10]), np.array([2.0**20], ml_dtypes.bfloat16), np.float32),
        (np.float16([1]), np.float16([2]), np.float16),
    ],
)
def test_layers_of_mixed_types_keep_their_values(tmp_path, first, second, kept):
    first = np.asarray(first).reshape(1)
    leaf = read_params(stored(tmp_path, first, second), LAYERS, TREE, dtype=None)["w"]
    assert leaf.dtype == kept
    assert [float(value) for value in leaf[:, 0]] == [float(first[0]), float(second[0])]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(np.float32([1e6]), jnp.float16), (np.float64([1e300]), jnp.float32)],
)
def test_a_weight_that_does_not_fit_the_type_is_an_error(tmp_path, value, dtype):
    folder = stored(tmp_path, np.ones_like(value), value)
    with pytest.raises(HubError, match=r"1\.w: 1 finite float.. weights are infinite as float"):
        read_params(folder, LAYERS, TREE, dtype=dtype)


def test_infinite_weights_stay_infinite(tmp_path):
    folder = stored(tmp_path, np.float32([np.inf]), np.float32([1]))
    leaf = read_params(folder, LAYERS, TREE, dtype=jnp.float16)["w"]
    assert leaf.tolist() == [[np.inf], [1]]


@pytest.mark.parametrize("dtype", [None, jnp.float16])
def test_a_weight_that_is_no_number_is_an_error(tmp_path, dtype):
    folder = stored(tmp_path, np.float32([1]), np.float32([np.nan]))
    with pytest.raises(HubError, match=r"1\.w: expected numbers, got 1 NaN of 1"):
        read_params(folder, LAYERS, TREE, dtype=dtype)


def test_float64_is_kept_only_where_jax_has_it(tmp_path):
    folder = stored(tmp_path, np.float64([1 + 2**-40]), np.float32([1]))
    with pytest.raises(HubError, match="jax_enable_x64"):
        read_params(folder, LAYERS, TREE, dtype=None)
    with jax.enable_x64(True):
        leaf = read_params(folder, LAYERS, TREE, dtype=None)["w"]
        assert leaf.dtype == np.float64
        assert float(leaf[0, 0]) == 1 + 2**-40


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_not_written(tmp_path, value):
    params = {"w": np.float32([[1], [value]])}
    with pytest.raises(HubError, match=r"1\.w: expected finite weights, got 1 NaN or infinite"):
        write_folder(tmp_path / "model", {}, LAYERS, params)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64"])
def test_counters_without_a_sign_are_read(tmp_path, kind):
    counts = np.array([0, np.iinfo(kind).max], kind)
    save_file({"count": counts}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(open_file(tmp_path / "x.safetensors").view("count"), counts)

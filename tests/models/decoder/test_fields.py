"""Fields of `config.json` that say one thing in two places: transformers' order, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmethods.errors import UserError
from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import RopeScaling
from jaxmethods.models.decoder.families.known import FAMILIES
from jaxmethods.models.hub.folders import Folder, HubError
from tests.models.decoder.decoders import CONFIGS, LLAMA, random_ids, random_params

DEFAULT = {"rope_type": "default", "rope_theta": 500.0}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FULL, SLIDING = ["full_attention"] * 3, ["sliding_attention"] * 3
LINEAR = RopeScaling(kind="linear", factor=4)
ABSENT = object()


def llama3(original):
    return RopeScaling(kind="llama3", factor=4, original_max_positions=original)


# Family, what is changed in its config.json, what the decoder then is.
READ = {
    "rope_parameters before rope_theta": (
        "llama", {"rope_parameters": DEFAULT}, {"rope_theta": 500}),
    "rope_scaling before rope_parameters, whose base is lost": (
        "llama",
        {"rope_parameters": DEFAULT, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_theta": 10_000, "rope_scaling": LINEAR}),
    "the same without a base of its own": (
        "llama",
        {
            "rope_parameters": DEFAULT,
            "rope_scaling": {"type": "linear", "factor": 4.0},
            "rope_theta": ABSENT,
        },
        {"rope_theta": 10_000, "rope_scaling": LINEAR}),
    "an empty rope_scaling says nothing": (
        "llama", {"rope_parameters": DEFAULT, "rope_scaling": {}}, {"rope_theta": 500}),
    "a base inside rope_scaling before one beside it": (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 4.0, "rope_theta": 7e2}, "rope_theta": 9e2},
        {"rope_theta": 700, "rope_scaling": LINEAR}),
    "rope_type before type": (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 4.0}},
        {"rope_scaling": LINEAR}),
    "positions that are drawn apart": (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 0.5}},
        {"rope_scaling": RopeScaling(kind="linear", factor=0.5)}),
    "llama3 without an original length: the model's": (
        "llama", {"rope_scaling": LLAMA3}, {"rope_scaling": llama3(64)}),
    "the original length in the dictionary": (
        "llama",
        {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32}},
        {"rope_scaling": llama3(32)}),
    "the original length beside the dictionary before it": (
        "llama",
        {
            "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32},
            "original_max_position_embeddings": 16,
        },
        {"rope_scaling": llama3(16)}),
    "swish is silu": ("llama", {"hidden_act": "swish"}, {"activation": "silu"}),
    "gelu_python is gelu": ("llama", {"hidden_act": "gelu_python"}, {"activation": "gelu"}),
    "mistral has no biases": ("mistral", {"attention_bias": True, "mlp_bias": True}, {}),
    "mistral, null heads of keys: all": (
        "mistral", {"num_key_value_heads": None}, {"kv_heads": 4}),
    "mistral of full layers": ("mistral", {"layer_types": FULL}, {"sliding_window": None}),
    "mistral of sliding layers": ("mistral", {"layer_types": SLIDING}, {"sliding_window": 4}),
    "mistral without layer types": ("mistral", {"layer_types": None}, {"sliding_window": 4}),
    "mistral without a window": ("mistral", {"sliding_window": None}, {"sliding_window": None}),
    "qwen3 has no biases in its MLP": ("qwen3", {"mlp_bias": True}, {}),
    "qwen3 of full layers": ("qwen3", {"layer_types": FULL, "sliding_window": 4}, {}),
    "neox's dictionary before its old fields": (
        "gpt_neox",
        {"rope_parameters": {**DEFAULT, "partial_rotary_factor": 0.7}, "rotary_pct": 1.0},
        {"rope_theta": 500, "rotary_dim": 4}),
    "neox's old fields where the dictionary is silent": (
        "gpt_neox",
        {"rope_parameters": {"rope_type": "default"}, "rotary_emb_base": 300.0, "rotary_pct": 0.7},
        {"rope_theta": 300, "rotary_dim": 4}),
    "neox doesn't read rope_theta or partial_rotary_factor": (
        "gpt_neox", {"rope_theta": 500.0, "partial_rotary_factor": 1.0}, {"rotary_dim": 2}),
    "codegen's other names before its own": (
        "codegen", {"hidden_size": 24, "n_embd": 999, "num_hidden_layers": 3, "n_layer": 9}, {}),
    "opt without a projection": ("opt", {"word_embed_proj_dim": None}, {}),
}  # fmt: skip


NULL = "mistral, null heads of keys: all"
"""Transformers 4 reads it so, transformers 5 refuses it."""


def changed(fields, changes):
    values = {**fields, **changes}
    return {name: value for name, value in values.items() if value is not ABSENT}


def parse(name, changes):
    """The decoder that a changed config.json describes."""
    config = CONFIGS[name]
    fields = FAMILIES[config.family].write(config)
    fields |= {"model_type": config.family, "vocab_size": 41, "tie_word_embeddings": config.tied}
    return decoder.read_config(Folder(Path("model"), changed(fields, changes), {}))


@pytest.mark.parametrize("case", READ)
def test_two_places_for_one_setting(case):
    name, changes, expected = READ[case]
    assert parse(name, changes) == CONFIGS[name].model_copy(update=expected)


@pytest.mark.parametrize("case", [case for case in READ if case != NULL])
def test_transformers_reads_the_same(tmp_path, case):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5")
    name, changes, expected = READ[case]
    config = CONFIGS[name].model_copy(update=expected)
    decoder.save(tmp_path / "model", config, random_params(config))
    written = tmp_path / "model" / "config.json"
    fields = json.loads(written.read_text()) | FAMILIES[config.family].write(CONFIGS[name])
    written.write_text(json.dumps(changed(fields, changes)))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager"
    )
    ids = np.array(random_ids(config, 2, 12))
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(ids)).logits
    config, params = decoder.load(tmp_path / "model")
    ours = decoder.forward(params, config, jnp.asarray(ids)).logits
    np.testing.assert_allclose(ours, theirs, atol=5e-5, rtol=0)


REFUSED = [
    (
        "llama",
        {"rope_parameters": DEFAULT, "rope_scaling": {"type": "yarn", "factor": 2.0}},
        "rope_scaling: expected rope_type .*'yarn'",
    ),
    ("llama", {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_scaling: .*longrope"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor: expected a number"),
    ("llama", {"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "low_freq_factor: expected"),
    ("llama", {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor: expected"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling: expected an object"),
    (
        "llama",
        {"rope_parameters": {"full_attention": DEFAULT}},
        "rope_parameters: expected one setting for all layers, got 'one for full_attention'",
    ),
    (
        "llama",
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 0},
        "original_max_position_embeddings: expected a positive integer",
    ),
    ("llama", {"rope_theta": float("inf")}, "rope_theta: expected a number, got inf"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1.0, got 0.5"),
    (
        "llama",
        {"rope_parameters": {**DEFAULT, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor: expected 1.0, got 0.5",
    ),
    ("llama", {"attention_bias": "false"}, "attention_bias: expected true or false, got 'false'"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false, got 1"),
    ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps: expected a number"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config: expected"),
    ("llama", {"model_type": ["llama"]}, "model_type: .* is not supported"),
    ("llama", {"hidden_act": ["silu"]}, "hidden_act: expected one of silu"),
    ("llama", {"is_causal": False}, "is_causal: expected true, got False"),
    ("llama", {"per_layer_config": {"0": {}}}, "per_layer_config: expected nothing"),
    *(
        (name, {"layer_types": SLIDING}, "layer_types: expected 'full_attention' only")
        for name in ("llama", "gpt_neox", "opt", "codegen")
    ),
    ("mistral", {"layer_types": [*FULL[:2], *SLIDING[:1]]}, "layer_types: expected one kind"),
    ("mistral", {"layer_types": SLIDING, "sliding_window": None}, "layer_types: expected one kind"),
    ("mistral", {"layer_types": FULL[:2]}, "layer_types: expected 3 layers"),
    ("qwen3", {"layer_types": [*FULL, *FULL]}, "layer_types: expected 3 layers"),
    ("qwen3", {"layer_types": ["chunked_attention"] * 3}, "layer_types: expected 'full_attention'"),
    ("gpt_neox", {"rotary_pct": 0.5}, "rotary_pct: expected an even part of the 6 of a head"),
    ("gpt_neox", {"head_dim": 8}, "head_dim: expected 6, got 8"),
    ("gpt_neox", {"hidden_size": 25}, "num_attention_heads: expected a divisor of the width 25"),
    ("codegen", {"rotary_dim": None}, "rotary_dim: expected an even number up to 6"),
    ("codegen", {"rotary_dim": ABSENT}, "rotary_dim: expected an even number up to 6, got 64"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_a_setting_without_a_meaning_here_is_refused_by_its_name(name, changes, message):
    with pytest.raises(UserError, match=message) as raised:
        parse(name, changes)
    assert len(str(raised.value).splitlines()) == 1


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


TIED = LLAMA.model_copy(update={"tied": True})


@pytest.fixture
def tied(tmp_path):
    params = random_params(TIED)
    decoder.save(tmp_path / "model", TIED, params)
    return tmp_path / "model", params


def test_a_stored_head_that_differs_from_the_embedding_is_kept(tmp_path, tied):
    folder, params = tied
    head = np.random.default_rng(0).normal(size=(41, 24)).astype(np.float32)
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": head}))
    config, loaded = decoder.load(folder)
    assert not config.tied
    np.testing.assert_array_equal(loaded["head"]["kernel"], head.T)
    np.testing.assert_array_equal(loaded["embed"]["tokens"], params["embed"]["tokens"])
    decoder.save(tmp_path / "copy", config, loaded, like=folder)
    again, copied = decoder.load(tmp_path / "copy")
    assert again == config
    np.testing.assert_array_equal(copied["head"]["kernel"], head.T)


def test_a_head_stored_twice_is_the_embedding(tied):
    folder, _ = tied
    name = "model.embed_tokens.weight"
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[name].copy()}))
    config, loaded = decoder.load(folder)
    assert config == TIED
    assert "head" not in loaded


@pytest.mark.parametrize("name", ["llama linear", "opt"])
def test_where_only_the_head_is_stored_it_is_the_embedding_too(tmp_path, name):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    decoder.save(tmp_path / "model", config, params)
    embedding = {"opt": "model.decoder.embed_tokens.weight"}.get(name, "model.embed_tokens.weight")
    edit(
        tmp_path / "model",
        lambda tensors: tensors.update({"lm_head.weight": tensors.pop(embedding)}),
    )
    again, loaded = decoder.load(tmp_path / "model")
    assert again == config
    np.testing.assert_array_equal(loaded["embed"]["tokens"], params["embed"]["tokens"])


def test_neox_heads_have_two_names(tmp_path):
    config, params = CONFIGS["gpt_neox"], random_params(CONFIGS["gpt_neox"])
    decoder.save(tmp_path / "model", config, params)
    edit(
        tmp_path / "model",
        lambda tensors: tensors.update({"lm_head.weight": tensors.pop("embed_out.weight")}),
    )
    _, loaded = decoder.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded["head"]["kernel"], params["head"]["kernel"])


def test_biases_that_a_family_has_not_are_no_parameters(tmp_path):
    config = CONFIGS["mistral"]
    decoder.save(tmp_path / "model", config, random_params(config))
    written = tmp_path / "model" / "config.json"
    written.write_text(json.dumps(json.loads(written.read_text()) | {"attention_bias": True}))
    bias = {"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)}
    edit(tmp_path / "model", lambda tensors: tensors.update(bias))
    with pytest.raises(HubError, match=r"no use for: .*q_proj\.bias"):
        decoder.load(tmp_path / "model")


def test_a_copy_keeps_no_field_that_says_something_else(tmp_path):
    like = tmp_path / "like"
    decoder.save(like, LLAMA, random_params(LLAMA))
    fields = json.loads((like / "config.json").read_text()) | {
        "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16},
        "original_max_position_embeddings": 16,
        "layer_types": ["sliding_attention"] * 9,
        "transformers_weights": "model.safetensors",
        "dtype": "float16",
        "bos_token_id": 7,
    }
    (like / "config.json").write_text(json.dumps(fields))
    small = LLAMA.model_copy(update={"layers": 2})
    decoder.save(tmp_path / "copy", small, random_params(small), like=like)
    written = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert written["bos_token_id"] == 7
    assert written["torch_dtype"] == "float32"
    assert not written.keys() & (fields.keys() - {"bos_token_id"} - written.keys())
    assert decoder.load(tmp_path / "copy")[0] == small


def test_a_config_names_a_type_that_holds_all_weights(tmp_path):
    params = random_params(LLAMA)
    params["embed"]["tokens"] = params["embed"]["tokens"].astype(jnp.float16)
    params["head"]["kernel"] = params["head"]["kernel"].astype(jnp.bfloat16)
    decoder.save(tmp_path / "model", LLAMA, params)
    assert json.loads((tmp_path / "model/config.json").read_text())["torch_dtype"] == "float32"
    _, loaded = decoder.load(tmp_path / "model", dtype=None)
    assert loaded["embed"]["tokens"].dtype == jnp.float16
    assert loaded["head"]["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("name", "update", "message"),
    [
        ("opt", {"norm_eps": 1e-6}, "norm_eps: the config of opt can't say 1e-06, only 1e-05"),
        (
            "llama",
            {"sliding_window": 4},
            "sliding_window: the config of llama can't say 4, only None",
        ),
    ],
)
def test_a_model_that_would_be_read_as_another_one_is_not_written(tmp_path, name, update, message):
    config = CONFIGS[name].model_copy(update=update)
    with pytest.raises(HubError, match=message):
        decoder.save(tmp_path / "model", config, random_params(config))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("head_dim", [10, 49, 98])
def test_every_part_of_a_neox_head_that_turns_is_read_again(head_dim):
    config = CONFIGS["gpt_neox"]
    for rotary_dim in range(2, head_dim + 1, 2):
        update = {"head_dim": head_dim, "width": 4 * head_dim, "rotary_dim": rotary_dim}
        config = config.model_copy(update=update)
        fields = {"model_type": "gpt_neox", "vocab_size": 41, "tie_word_embeddings": False}
        fields |= FAMILIES["gpt_neox"].write(config)
        assert decoder.read_config(Folder(Path("model"), fields, {})) == config

"""Decoders in and out of Hugging Face folders; beside `transformers` where it is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmethods.errors import UserError
from jaxmethods.models import decoder
from jaxmethods.models.decoder.generation import generate
from jaxmethods.models.hub.folders import HubError, open_folder
from tests.models.decoder.decoders import CONFIGS, LLAMA, random_ids, random_params
from tests.programs import quick

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_is_loaded_again(tmp_path, name):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    decoder.save(tmp_path / "model", config, params)
    again, loaded = decoder.load(tmp_path / "model")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("name", quick(CONFIGS, "llama", "qwen3"))
def test_transformers_gives_the_same_logits_and_tokens(tmp_path, name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    decoder.save(tmp_path / "model", config, params, largest_file=10_000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    stored = [load_file(file) for file in (tmp_path / "model").glob("*.safetensors")]
    size = sum(tensor.nbytes for tensors in stored for tensor in tensors.values())
    assert index["metadata"]["total_size"] == size
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = np.array(random_ids(config, 2, 12))
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(ids), output_hidden_states=True)
        continued = model.generate(
            torch.tensor(ids[:, :5]), max_new_tokens=4, do_sample=False, eos_token_id=None
        )
    ours = decoder.forward(params, config, jnp.asarray(ids), taps=("hidden",))
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=5e-5, rtol=0)
    hidden = np.stack([state.numpy() for state in theirs.hidden_states])
    np.testing.assert_allclose(ours.hidden, hidden, atol=5e-5, rtol=0)
    tokens = generate(params, config, jnp.asarray(ids[:, :5]), new_tokens=4).tokens
    np.testing.assert_array_equal(tokens, continued[:, 5:])


def test_what_transformers_writes_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.LlamaConfig(
        vocab_size=31,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_scaling={
            "rope_type": "llama3",
            "rope_theta": 5e4,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    )
    model = transformers.LlamaForCausalLM(theirs).eval()
    model.save_pretrained(tmp_path / "model", max_shard_size="5KB")
    config, params = decoder.load(tmp_path / "model")
    ids = np.array(random_ids(config, 2, 30))
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits
    outputs = decoder.forward(params, config, jnp.asarray(ids))
    np.testing.assert_allclose(outputs.logits, expected, atol=5e-5, rtol=0)


def test_a_copy_keeps_tokenizer_and_further_fields(tmp_path):
    params = random_params(LLAMA)
    decoder.save(tmp_path / "model", LLAMA, params)
    written = tmp_path / "model" / "config.json"
    written.write_text(json.dumps(json.loads(written.read_text()) | {"bos_token_id": 7}))
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    decoder.save(tmp_path / "copy", LLAMA, half, like=tmp_path / "model")
    folder = open_folder(tmp_path / "copy")
    assert folder.config["bos_token_id"] == 7
    assert folder.config["torch_dtype"] == "bfloat16"
    assert (tmp_path / "copy" / "tokenizer.json").is_file()
    _, loaded = decoder.load(tmp_path / "copy", dtype=None)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(jnp.bfloat16)}


ROPE = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"model_type": "lama"}, r"model_type: 'lama' is not supported .*'llama'"),
        ("llama", {"model_type": None}, "model_type: None is not supported"),
        ("llama", {"rope_scaling": ROPE}, "rope_scaling: expected rope_type default, .*'yarn'"),
        ("llama", {"rope_parameters": ROPE}, "rope_scaling: expected rope_type default, .*'yarn'"),
        ("llama", {"hidden_act": "swish9"}, "hidden_act: expected one of silu, .*'swish9'"),
        ("llama", {"hidden_size": "big"}, "hidden_size: expected a positive integer, got 'big'"),
        ("llama", {"num_key_value_heads": 3}, "kv_heads: expected a divisor of the 4 heads, got 3"),
        ("llama", {"num_hidden_layers": 4}, r"tensors are missing: .*layers\.3\."),
        ("llama", {"num_hidden_layers": 2}, r"no use for: model\.layers\.2\."),
        ("llama", {"intermediate_size": 41}, r"gate_proj.weight: expected shape \(41, 24\), got"),
        ("llama", {"tie_word_embeddings": False, "attention_bias": True}, "missing: .*bias"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window: expected False, got True"),
        ("qwen3", {"layer_types": ["sliding_attention"]}, "layer_types: expected 'full_attention'"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before: expected True, got False"),
        ("opt", {"word_embed_proj_dim": 12}, "word_embed_proj_dim: expected 24, got 12"),
        ("codegen", {"n_head": 6}, "n_head: expected a multiple of 4, got 6"),
    ],
)
def test_what_is_not_supported_is_one_line_that_names_it(tmp_path, name, changes, message):
    config = CONFIGS[name].model_copy(update={"layers": 3})
    decoder.save(tmp_path / "model", config, random_params(config))
    written = tmp_path / "model" / "config.json"
    written.write_text(json.dumps(json.loads(written.read_text()) | changes))
    with pytest.raises(UserError, match=message) as raised:
        decoder.load(tmp_path / "model")
    assert len(str(raised.value).splitlines()) == 1


MEASURE = """
import resource, sys
import jax, jax.numpy as jnp
from jaxmethods.models import decoder
jax.block_until_ready(jnp.ones(3) + 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, params = decoder.load(sys.argv[1])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
print(peak * 1024 / size)
"""


def test_loading_never_holds_the_model_twice(tmp_path):
    config = LLAMA.model_copy(
        update={"width": 512, "mlp_width": 1024, "layers": 24, "heads": 16, "kv_heads": 16}
    )
    config = config.model_copy(update={"head_dim": 32, "rotary_dim": 32})
    shapes = jax.eval_shape(lambda key: decoder.init_params(key, config), jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    decoder.save(tmp_path / "model", config, zeros, largest_file=20 * 2**20)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "model")],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    # On CPU the loaded model is in host memory once; a leaf of a fifth of it, and its file, twice.
    assert float(run.stdout) < 1.7


@pytest.mark.parametrize("name", ["llama linear", "gpt_neox", "opt", "codegen"])
def test_tensors_without_the_prefix_of_the_model_are_read(tmp_path, name):
    """As a bare `LlamaModel` is stored; a head that isn't the embedding stands beside it."""
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    decoder.save(tmp_path / "model", config, params)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    prefixes = {own.partition(".")[0] for own in stored} - {"lm_head", "embed_out"}
    assert len(prefixes) == 1
    bare = {own.removeprefix(f"{min(prefixes)}."): tensor for own, tensor in stored.items()}
    save_file(bare, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    again, loaded = decoder.load(tmp_path / "model")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("layers", [1, 4])
def test_parameters_of_another_number_of_layers_are_not_written(tmp_path, layers):
    """One layer would be left out, or the last one written several times."""
    config = CONFIGS["llama"].model_copy(update={"layers": layers})
    with pytest.raises(HubError, match=f"expected {layers} layers in front, got shape"):
        decoder.save(tmp_path / "model", config, random_params(CONFIGS["llama"]))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.float8_e4m3fn])
def test_codes_are_not_written_as_weights(tmp_path, dtype):
    """Nothing could read them: their scales are not in the folder."""
    codes = jax.tree.map(lambda leaf: leaf.astype(dtype), random_params(CONFIGS["llama"]))
    with pytest.raises(HubError, match="expected floating-point weights, got"):
        decoder.save(tmp_path / "model", CONFIGS["llama"], codes)

"""Low-rank adapters: beside a kernel or in it, fresh ones, and as PEFT names them."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxmethods.models import decoder
from jaxmethods.models.decoder import lora, peft
from jaxmethods.models.hub import HubError

CONFIG = decoder.DecoderConfig(
    family="llama",
    vocab_size=19,
    width=8,
    mlp_width=12,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=4,
    max_positions=32,
    rotary_dim=4,
)
IDS = jnp.arange(10).reshape(2, 5)
TARGETS = ("query", "value", "down")
SCALE = 0.5


@pytest.fixture(scope="module")
def found():
    """Logits with adapters attached, merged and fresh, and without any; and the adapters."""

    def logits(params):
        return decoder.forward(params, CONFIG, IDS).logits

    @jax.jit
    def make(key):
        params = decoder.init_params(key, CONFIG)
        fresh = lora.init(key, CONFIG, 3, TARGETS)
        trained = jax.tree.map(lambda leaf: leaf + jax.random.normal(key, leaf.shape), fresh)
        changed = [decoder.lora.attach(params, one, SCALE) for one in (trained, fresh)]
        changed += [decoder.lora.merge(params, trained, SCALE), params]
        changed += [lora.weakened(lora.attach(params, trained, 4 * SCALE), 0.25)]
        changed += [lora.weakened(changed[0], 0), lora.weakened(params, 0)]
        return [logits(one) for one in changed], trained

    return make(jax.random.key(0))


def test_beside_a_kernel_or_in_it_adapters_are_the_same(found):
    (attached, _, merged, plain, *_), _ = found
    np.testing.assert_allclose(attached, merged, rtol=1e-4, atol=1e-5)
    assert np.abs(attached - plain).max() > 1e-3


def test_fresh_adapters_change_nothing(found):
    (_, fresh, _, plain, *_), _ = found
    np.testing.assert_array_equal(fresh, plain)


def test_weakened_additions_are_between_none_and_all(found):
    (attached, _, _, plain, quarter, nothing, untouched), _ = found
    np.testing.assert_allclose(quarter, attached, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(nothing, plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(untouched, plain)


def test_the_folder_has_the_names_and_shapes_of_peft(found, tmp_path):
    adapters = jax.device_get(found[1])
    peft.save_adapter(tmp_path / "adapter", CONFIG, adapters, alpha=1.5, base="the/model")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert (settings["r"], settings["lora_alpha"]) == (3, 1.5)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(stored) == 2 * len(TARGETS) * CONFIG.layers
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    first, second = stored[name.format("A")], stored[name.format("B")]
    assert (first.shape, second.shape) == ((3, 8), (8, 3))
    own = adapters["attention/query"]
    np.testing.assert_allclose(second @ first, (own["a"] @ own["b"])[1].T, rtol=1e-5)


def test_what_a_decoder_does_not_have_is_refused():
    plain = CONFIG.model_copy(update={"gated": False})
    with pytest.raises(ValueError, match="query, key, value, out, up, down, got 'gate'"):
        lora.init(jax.random.key(0), plain, 2, ("gate",))
    with pytest.raises(ValueError, match="got 'head'"):
        lora.init(jax.random.key(0), CONFIG, 2, ("head",))


def test_a_part_of_a_tensor_is_not_saved_apart(found, tmp_path):
    neox = CONFIG.model_copy(update={"family": "gpt_neox", "kv_heads": 2})
    with pytest.raises(HubError, match=r"gpt_neox keeps attention/query in .* with 2 others"):
        peft.save_adapter(tmp_path / "a", neox, found[1], alpha=1.0)
    assert not (tmp_path / "a").exists()


def test_adapters_that_one_config_cannot_say_are_not_saved(found, tmp_path):
    adapters = jax.device_get(found[1])
    one, other = "attention/query", "mlp/down"
    narrow = {"a": adapters[other]["a"][..., :2], "b": adapters[other]["b"][:, :2]}
    broken = {**adapters[one], "b": np.full_like(adapters[one]["b"], np.nan)}
    for given, message in (
        ({}, "expected some of one rank"),
        (adapters | {other: narrow}, r"one rank.*'mlp/down': 2"),
        (adapters | {one: broken}, r"attention/query/b: expected finite weights, got \d+ NaN"),
    ):
        with pytest.raises(HubError, match=message):
            peft.save_adapter(tmp_path / "a", CONFIG, given, alpha=1.0)
        assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("part", "cut", "message"),
    [
        ("a", np.s_[:1], "attention/query/a: expected shape"),  # JAX gave the last layer again
        ("a", np.s_[:, :3], "attention/query/a: expected shape"),
        ("b", np.s_[:, :1], "attention/query/b: expected shape"),
    ],
)
def test_adapters_of_another_decoder_are_not_saved(found, tmp_path, part, cut, message):
    own = found[1]["attention/query"]
    given = {"attention/query": own | {part: own[part][cut]}}
    with pytest.raises(HubError, match=message):
        peft.save_adapter(tmp_path / "a", CONFIG, given, alpha=1.0)
    with pytest.raises(HubError, match="alpha: expected a finite number, got nan"):
        peft.save_adapter(tmp_path / "a", CONFIG, {"attention/query": own}, alpha=float("nan"))
    assert not (tmp_path / "a").exists()
    peft.save_adapter(tmp_path / "a", CONFIG, {"attention/query": own}, alpha=np.float32(8))
    written = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert written["lora_alpha"] == 8


def test_additions_of_half_precision_are_rounded_once():
    """The sum over the rank, and the product with the scale, are float32 as the kernel is."""
    rng = np.random.default_rng(0)
    own = {part: jnp.asarray(rng.normal(size=(1, 16, 16)), jnp.bfloat16) for part in ("a", "b")}
    params = {"layers": {"attention": {"query": {"kernel": jnp.zeros((1, 16, 16))}}}}
    merged = lora.merge(params, {"attention/query": own}, 0.3)
    wide = {part: np.asarray(value, np.float64) for part, value in own.items()}
    found = merged["layers"]["attention"]["query"]["kernel"]
    np.testing.assert_allclose(found, 0.3 * wide["a"] @ wide["b"], atol=1e-5)

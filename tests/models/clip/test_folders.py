"""CLIP folders of every layout: towers with and without projection, old and new configs."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmethods.models import clip, hub

RAW = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 6,
}
PLAIN, PROJECTED = clip.TOWERS
PIXELS = jnp.linspace(-1, 1, 2 * 16 * 16 * 3).reshape(2, 16, 16, 3)


def parameters(raw):
    params = clip.init(jax.random.key(0), clip.config_of(raw))
    return jax.tree.map(lambda leaf: leaf + 0.02, params)


@pytest.fixture
def projected(tmp_path):
    """A folder as `CLIPVisionModelWithProjection` writes it."""
    raw = RAW | {"architectures": [PROJECTED]}
    clip.save(tmp_path / "projected", raw, parameters(raw))
    return tmp_path / "projected"


@pytest.mark.slow
def test_a_projection_is_read_applied_and_written(tmp_path, projected):
    loaded = clip.load(projected)
    weight = load_file(projected / "model.safetensors")[clip.PROJECTION]
    vision = clip.image_features(loaded.params, loaded.config, PIXELS)
    assert vision.features.shape == (2, 6)
    np.testing.assert_allclose(vision.features, vision.pooled @ weight.T, atol=1e-5)
    clip.save(tmp_path / "copy", loaded.raw, loaded.params)
    again = clip.load(tmp_path / "copy")
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
    assert again.raw["architectures"] == [PROJECTED]


def test_a_projection_that_the_class_needs_must_be_stored(projected):
    tensors = load_file(projected / "model.safetensors")
    del tensors[clip.PROJECTION]
    save_file(tensors, projected / "model.safetensors")
    with pytest.raises(hub.HubError, match=r"missing: visual_projection\.weight"):
        clip.load(projected)


def test_a_folder_without_a_class_keeps_the_projection_that_is_stored(tmp_path, projected):
    (projected / "config.json").write_text(json.dumps(RAW))
    loaded = clip.load(projected)
    assert loaded.params["visual_projection"]["weight"].shape == (6, 16)
    clip.save(tmp_path / "copy", loaded.raw, loaded.params)
    assert "visual_projection" in clip.load(tmp_path / "copy").params


def test_the_class_without_projection_has_none(tmp_path, projected):
    raw = RAW | {"architectures": [PLAIN]}
    (projected / "config.json").write_text(json.dumps(raw))
    loaded = clip.load(projected)
    assert loaded.params.keys() == {"vision_model"}
    vision = clip.image_features(loaded.params, loaded.config, PIXELS)
    np.testing.assert_array_equal(vision.features, vision.pooled)
    # Written with a projection, it is of the other class.
    with_projection = parameters(RAW | {"architectures": [PROJECTED]})
    clip.save(tmp_path / "copy", raw, with_projection)
    assert clip.load(tmp_path / "copy").raw["architectures"] == [PROJECTED]


def test_a_tower_without_the_prefix_is_read(tmp_path):
    raw = RAW | {"architectures": [PLAIN]}
    params = parameters(raw)
    clip.save(tmp_path / "old", raw, params)
    tensors = load_file(tmp_path / "old" / "model.safetensors")
    flat = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    assert "pre_layrnorm.weight" in flat
    save_file(flat, tmp_path / "old" / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, clip.load(tmp_path / "old").params, params)


def test_a_head_that_a_tower_has_no_place_for_is_not_left_out_in_silence(projected):
    tensors = load_file(projected / "model.safetensors")
    tensors["classifier.weight"] = np.ones((3, 16), np.float32)
    save_file(tensors, projected / "model.safetensors")
    with pytest.raises(hub.HubError, match=r"no use for: classifier\.weight"):
        clip.load(projected)


@pytest.mark.parametrize("architecture", [PLAIN, PROJECTED])
def test_transformers_reads_what_is_written_and_writes_what_is_read(tmp_path, architecture):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    raw = RAW | {"architectures": [architecture]}
    params = parameters(raw)
    clip.save(tmp_path / "ours", raw, params)
    kind = getattr(transformers, architecture)
    model, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(np.array(PIXELS.transpose(0, 3, 1, 2))))
    theirs = theirs.image_embeds if architecture == PROJECTED else theirs.pooler_output
    model.save_pretrained(tmp_path / "theirs")
    loaded = clip.load(tmp_path / "theirs")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    ours = clip.image_features(loaded.params, loaded.config, PIXELS).features
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_older_dictionaries_of_a_config_are_the_stronger_ones():
    raw = {
        "model_type": "clip",
        "projection_dim": 6,
        "vision_config": {"hidden_size": 96, "num_attention_heads": 3, "patch_size": 16},
        "vision_config_dict": {"hidden_size": 48, "hidden_act": "gelu"},
        "text_config": {"hidden_size": 48, "vocab_size": 99},
        "text_config_dict": None,
    }
    config = clip.config_of(raw)
    # What the older dictionary leaves out has the class's default, not the newer one's value.
    assert (config.vision.hidden_size, config.vision.hidden_act) == (48, "gelu")
    assert (config.vision.num_attention_heads, config.vision.patch_size) == (12, 32)
    assert config.text is not None
    assert (config.text.hidden_size, config.text.vocab_size) == (48, 99)
    assert config.projection_dim == config.vision.projection_dim == 6
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPConfig(**raw)
    for ours, tower in ((config.vision, "vision_config"), (config.text, "text_config")):
        expected = getattr(theirs, tower).to_dict()
        fields = {key: value for key, value in ours.model_dump().items() if key != "projection_dim"}
        assert fields == {name: expected[name] for name in fields}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"bits": 8}}, "quantization_config: expected nothing"),
        ({"vision_config": [1]}, "vision_config: expected an object"),
        ({"projection_dim": None}, "projection_dim"),
        ({"vision_config": {"image_size": [16, 16]}}, "image_size"),
        ({"vision_config_dict": {"hidden_act": "relu"}}, "hidden_act"),
        ({"text_config": {"num_attention_heads": 7}}, "num_attention_heads: expected a divisor"),
        # An end that no text has would pool every text's first token.
        ({"text_config": {"eos_token_id": None}}, "eos_token_id"),
    ],
)
def test_a_field_without_a_meaning_here_is_refused_by_its_name(changes, message):
    with pytest.raises(hub.HubError, match=message):
        clip.config_of({"model_type": "clip", **changes})


def test_what_is_written_is_not_rounded_when_it_is_read(tmp_path):
    raw = RAW | {"dtype": "float16", "torch_dtype": "bfloat16", "transformers_weights": "x"}
    clip.save(tmp_path / "wide", raw, parameters(RAW))
    written = json.loads((tmp_path / "wide" / "config.json").read_text())
    assert (written["dtype"], written["torch_dtype"]) == ("float32", "float32")
    assert "transformers_weights" not in written
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), parameters(RAW))
    clip.save(tmp_path / "half", raw, half)
    written = json.loads((tmp_path / "half" / "config.json").read_text())
    assert (written["dtype"], written["torch_dtype"]) == ("float16", "float16")

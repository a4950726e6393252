"""Released layouts are recognized, and what does not fit is named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmethods.models import geovit
from jaxmethods.models.clip.vit import usual_heads
from jaxmethods.models.hub.folders import HubError
from tests.rsfm.small import TINY, draw, encoder_params

LEARNED = TINY.model_copy(update={"positions": "learned"})


def tensors():
    return geovit.to_tensors(encoder_params(LEARNED), LEARNED)


def test_a_file_gives_back_what_was_written_bit_for_bit(tmp_path):
    save_file(tensors(), tmp_path / "encoder.safetensors")
    loaded = geovit.load(tmp_path / "encoder.safetensors", heads=2)
    assert loaded.config == LEARNED
    jax.tree.map(np.testing.assert_array_equal, loaded.params, encoder_params(LEARNED))
    again = geovit.to_tensors(loaded.params, loaded.config)
    jax.tree.map(np.testing.assert_array_equal, again, tensors())


@pytest.mark.parametrize("inner", [61, 64])  # 112 (61 / 112) is 60.99999999999999
def test_a_loaded_config_makes_parameters_of_the_shapes_that_were_loaded(inner):
    config = LEARNED.model_copy(update={"width": 112, "mlp_ratio": (inner + 0.5) / 112})
    own = jax.eval_shape(lambda: geovit.init(jax.random.key(0), config))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), own)
    loaded = geovit.load(geovit.to_tensors(zeros, config), heads=2)
    again = jax.eval_shape(lambda: geovit.init(jax.random.key(0), loaded.config))
    assert jax.tree.map(jnp.shape, loaded.params) == jax.tree.map(jnp.shape, again)


@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_blocks_is_not_written(change):
    config = LEARNED.model_copy(update={"depth": LEARNED.depth + change})
    with pytest.raises(ValueError, match=f"expected blocks of depth {config.depth}, got"):
        geovit.to_tensors(encoder_params(LEARNED), config)


def test_a_norm_behind_the_pooling_stays_there():
    config = LEARNED.model_copy(update={"norm_after_pooling": True})
    own = geovit.to_tensors(encoder_params(config), config)
    assert geovit.load(own, heads=2).config == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own.astype(np.int8), "expected floating-point weights, got int8"),
        (lambda own: own.astype(jnp.float8_e4m3fn), "expected floating-point weights, got float8"),
        (lambda own: np.nan * own, "expected numbers, got 8 NaN of 8"),
    ],
)
def test_codes_and_nan_are_no_weights(change, message):
    own = tensors()
    own["norm.weight"] = change(own["norm.weight"][:8])
    with pytest.raises(HubError, match=rf"norm.weight: {message}"):
        geovit.load(own, heads=2)


def test_missing_and_unknown_tensors_are_named():
    own = tensors()
    del own["blocks.0.mlp.fc2.bias"]
    own["surprise"] = np.zeros(1, np.float32)
    with pytest.raises(HubError, match=r"lacks blocks.0.mlp.fc2.bias; has unknown .* surprise"):
        geovit.load(own, heads=2)
    own = tensors()
    del own["blocks.0.attn.qkv.bias"]
    with pytest.raises(HubError, match=r"lacks blocks.0.attn.qkv.bias"):
        geovit.load(own, heads=2)
    own = tensors() | {"surprise": np.zeros(1, np.float32)}
    assert geovit.load(own, heads=2, strict=False).unused == ("surprise",)


def test_decoders_and_heads_are_set_aside():
    own = tensors() | {"decoder_embed.bias": np.zeros(3, np.float32), "mask_token": np.zeros(3)}
    assert geovit.load(own, heads=2).set_aside == ("decoder_embed.bias", "mask_token")


def test_a_wrapper_around_all_names_is_taken_off():
    own = {f"module.{name}": value for name, value in tensors().items()}
    assert geovit.load(own, heads=2).layout == "timm"


def test_layer_scale_is_part_of_the_maps():
    """x + gamma f(x), with what timm's layer computes."""
    own, gamma = tensors(), np.asarray(draw(1, 16))
    scaled = geovit.load(own | {"blocks.0.ls1.gamma": gamma, "blocks.0.ls2.gamma": gamma}, heads=2)
    plain = geovit.load(own, heads=2)
    for part, leaf in (("self_attn", "out_proj"), ("mlp", "fc2")):
        before, after = (one.params["blocks"][part][leaf] for one in (plain, scaled))
        x = draw(2, before["weight"].shape[-1])
        expected = gamma * (before["weight"][0] @ x + before["bias"][0])
        np.testing.assert_allclose(after["weight"][0] @ x + after["bias"][0], expected, atol=1e-5)


def test_registers_stand_between_class_token_and_patches():
    own = tensors() | {"register_tokens": np.asarray(draw(1, 1, 2, 16))}
    loaded = geovit.load(own, heads=2)
    assert loaded.config.registers == 2
    encoded = geovit.encode(loaded.params, loaded.config, draw(2, 1, 16, 16, 3))
    assert encoded.patches.shape == (1, 16, 16)


def test_tubelets_of_one_frame():
    own = tensors()
    own["patch_embed.proj.weight"] = own["patch_embed.proj.weight"][:, :, None]
    own["pos_embed"] = np.asarray(draw(1, 1, 1 + 2 * 16, 16))
    loaded = geovit.load(own, heads=2)
    assert (loaded.layout, loaded.config.frames) == ("prithvi", 2)
    encoded = geovit.encode(loaded.params, loaded.config, draw(2, 1, 2, 16, 16, 3))
    assert encoded.patches.shape == (1, 32, 16)


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_four_frames_are_not_taken_for_one_of_twice_the_side(frames):
    own = tensors()
    own["patch_embed.proj.weight"] = own["patch_embed.proj.weight"][:, :, None]
    own["pos_embed"] = geovit.positions.frames(16, 4, frames)[None]
    config = geovit.load(own, heads=2).config
    assert (config.frames, config.image_size) == (frames, 16)


def test_the_widest_towers_have_sixteen_heads():
    assert [usual_heads(width) for width in (192, 768, 1024, 1280, 1408, 1664)] == [
        *(3, 12, 16),
        *(16, 16, 16),
    ]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"layer1.weight": np.zeros(1)}, "expected tensors of timm"),
        ({"visual.conv1.weight": np.zeros(1)}, "models.clip.from_tensors"),
    ],
)
def test_another_layout_is_refused(tensors, message):
    with pytest.raises(HubError, match=message):
        geovit.load(tensors)


def test_pickled_weights_are_not_opened(tmp_path):
    (tmp_path / "mae.pth").write_bytes(b"anything")
    with pytest.raises(HubError, match="may run code"):
        geovit.load(tmp_path / "mae.pth")


def test_groups_must_be_those_of_the_tensors():
    fields = {"embedding": "grouped", "groups": ((0,), (1, 2)), "positions": "group"}
    config = geovit.EncoderConfig.model_validate(TINY.model_dump() | fields | {"channel_width": 8})
    own = geovit.to_tensors(encoder_params(config), config)
    own["pos_embed"] = geovit.positions.plain(8, 4)[None]
    codes = geovit.positions.groups(16, 4, 2, 8)[1::16, 8:]
    own["channel_embed"] = codes[None]
    loaded = geovit.load(own, heads=2, groups=config.groups)
    assert loaded.config == config
    np.testing.assert_array_equal(loaded.params["cls_token"], encoder_params(config)["cls_token"])
    with pytest.raises(HubError, match=r"expected groups of \[1, 2\] bands"):
        geovit.load(own, heads=2)


def test_parameters_are_float32_whatever_is_stored():
    own = {name: value.astype(np.float16) for name, value in tensors().items()}
    leaves = jax.tree.leaves(geovit.load(own, heads=2).params)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}

"""Numbers of MAE, SatMAE, Scale-MAE, DOFA, CLIP, GeoCLIP and of evaluation protocols.

Files are found by the beginning of their names and every size is read from the arrays; tolerances
and the meaning of the arrays: tests/golden/README.md.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.data.earth import normalization, sensors
from jaxmethods.models import clip, location
from jaxmethods.models.clip import contrastive
from jaxmethods.models.geovit import (
    EncoderConfig,
    checkpoint,
    encoder,
    patches,
    positions,
    wavelength,
)
from jaxmethods.numerics import linear_probe
from jaxmethods.rsfm import schedules
from jaxmethods.rsfm.evaluation import neighbors
from jaxmethods.rsfm.evaluation.measures import classification, detection, retrieval, segmentation
from jaxmethods.rsfm.pretraining import checkpoints, mae, scale_mae
from tests.golden_files import golden_files, read

FORWARD, GRADIENT, WIDE = 1e-5, 2e-5, 1e-9
SHARED = Path(os.environ.get("JAXMETHODS_SHARED", "/nowhere"))
GEOCLIP = SHARED / "data" / "rs" / "geoclip_location" / "model.safetensors"


def weights(golden, prefix="w."):
    return {
        name.removeprefix(prefix): value
        for name, value in golden.items()
        if name.startswith(prefix)
    }


def pixels(array):
    """Channels last."""
    return jnp.asarray(np.moveaxis(array, -3, -1))


def check(own, golden, tolerance=FORWARD):
    assert np.shape(own) == np.shape(golden)
    scale = np.abs(golden).max()
    np.testing.assert_allclose(own, golden, rtol=0, atol=tolerance * scale)


forward = functools.partial(jax.jit, static_argnames="config")(mae.forward)


@pytest.mark.parametrize("file", golden_files("rsfm", "mae_"))
def test_masked_autoencoder(file):
    golden = read(file)
    sizes = dict(zip(CONFIG, golden["config"].tolist(), strict=True))
    loaded = checkpoints.load_mae(
        weights(golden), heads=sizes["heads"], decoder_heads=sizes["decoder_heads"]
    )
    assert loaded.config.encoder.image_size == sizes["image"]
    assert loaded.config.encoder.depth == sizes["depth"]
    images, noise = pixels(golden["images"]), jnp.asarray(golden["noise"])
    plain = loaded.config.model_copy(update={"norm_pix": "none"})

    def loss(params):
        out = mae.forward(params, plain, images, noise)
        return out.loss, out

    (value, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(loaded.params)
    check(value, golden["loss_pix"])
    check(out.encoded.sequence, golden["latent"])
    check(out.pred, golden["pred"])
    np.testing.assert_array_equal(out.masks.hidden, golden["mask"])
    np.testing.assert_array_equal(out.masks.place, golden["ids_restore"])
    np.testing.assert_array_equal(patches.patchify(images, sizes["patch"]), golden["patchified"])
    hidden = jnp.asarray(golden["mask"])
    standard = mae.pixel_loss(loaded.config, images, out.pred, hidden)
    check(standard, golden["loss_norm_pix"])
    half = forward(loaded.params, plain.model_copy(update={"mask_ratio": 0.5}), images, noise)
    check(half.loss, golden["loss_pix_ratio05"])
    order = jnp.argsort(noise, axis=1)
    whole = encoder.encode(loaded.params["encoder"], plain.encoder, images, keep=order)
    check(whole.sequence, golden["latent_unmasked"])
    attention = gradient["encoder"]["blocks"]["self_attn"]
    qkv = [attention[name]["weight"][0] for name in ("q_proj", "k_proj", "v_proj")]
    check(jnp.concatenate(qkv), golden["grad.blocks.0.attn.qkv.weight"], GRADIENT)
    kernel = gradient["encoder"]["patch_embed"]["weight"]
    check(kernel, golden["grad.patch_embed.proj.weight"], GRADIENT)
    mask_token = gradient["decoder"]["mask_token"]
    check(mask_token[None, None], golden["grad.mask_token"], GRADIENT)


CONFIG = (
    *("image", "patch", "channels", "width", "depth", "heads"),
    *("decoder_width", "decoder_depth", "decoder_heads"),
)


@pytest.mark.parametrize(("masking", "prefix"), [("independent", "indep"), ("shared", "spatial")])
@pytest.mark.parametrize("file", golden_files("rsfm", "satmae_group"))
def test_groups_of_bands(file, masking, prefix):
    golden = read(file)
    loaded = checkpoints.load_mae(
        weights(golden),
        heads=int(golden["config"][6]),
        decoder_heads=int(golden["config"][10]),
        groups=json.loads(str(golden["groups"])),
    )
    update = {"masking": masking, "pairing": "published", "norm_pix": "joint"}
    config = loaded.config.model_copy(update=update)
    images = pixels(golden["images"])
    out = forward(loaded.params, config, images, jnp.asarray(golden[f"noise_{prefix}"]))
    check(out.encoded.sequence, golden[f"{prefix}.latent"])
    check(out.pred, golden[f"{prefix}.pred"])
    mask = golden[f"{prefix}.mask"]
    np.testing.assert_array_equal(out.masks.hidden.reshape(mask.shape), mask)
    check(out.loss, golden[f"{prefix}.loss_norm_pix"])
    raw = config.model_copy(update={"norm_pix": "none"})
    own = mae.satmae.loss(raw, images, out.pred, out.masks.hidden)
    check(own, golden[f"{prefix}.loss_pix"])
    restore = golden[f"{prefix}.ids_restore"]
    own = out.masks.place if masking == "independent" else _places(golden, prefix, config)
    np.testing.assert_array_equal(own, restore)


def _places(golden, prefix, config):
    return mae.random_masks(jnp.asarray(golden[f"noise_{prefix}"]), config.mask_ratio).place


@pytest.mark.parametrize("file", golden_files("rsfm", "satmae_temporal"))
def test_tokens_of_dates(file):
    golden = read(file)
    tensors = weights(golden)
    first = golden["decoder_pred_weight_first8"]
    head = np.zeros((len(tensors["decoder_pred.bias"]), first.shape[1]), np.float32)
    head[: len(first)] = first
    tensors["decoder_pred.weight"] = head
    loaded = checkpoints.load_mae(tensors, heads=1, decoder_heads=1)
    dates = jnp.asarray(golden["timestamps"])
    check(positions.encode_dates(dates, 128), golden["ts_embed_128"])
    context = encoder.Context(timestamps=dates)
    images, noise = pixels(golden["images"]), jnp.asarray(golden["noise"])
    out = forward(loaded.params, loaded.config, images, noise, context)
    check(out.encoded.sequence, golden["latent"])
    np.testing.assert_array_equal(out.masks.hidden, golden["mask"])
    np.testing.assert_array_equal(out.masks.place, golden["ids_restore"])
    check(out.pred[..., : len(first)], golden["pred_first8"])


@pytest.mark.parametrize("file", golden_files("rsfm", "scalemae"))
def test_scale_mae(file):
    golden = read(file)
    sizes = golden["config"].tolist()
    loaded = checkpoints.load_scale_mae(
        weights(golden), image_size=sizes[0], heads=sizes[5], decoder_heads=sizes[8]
    )
    bands = tuple(golden["band_config"].tolist())
    config = loaded.config.model_copy(update={"bands": bands})
    arrays = (pixels(golden["images"]), pixels(golden["targets"]))
    gsd = jnp.asarray(golden["input_res"])
    run = jax.jit(scale_mae.forward, static_argnames="config")
    out = run(loaded.params, config, *arrays, jnp.asarray(golden["noise"]), gsd)
    check(out.loss, golden["loss_l1high_l2low"])
    check(out.encoded.sequence, golden["latent"])
    np.testing.assert_array_equal(out.masks.hidden, golden["mask"])
    np.testing.assert_array_equal(out.masks.place, golden["ids_restore"])
    check(jnp.moveaxis(out.pred.high, -1, 1), golden["pred_high"])
    check(jnp.moveaxis(out.pred.low, -1, 1), golden["pred_low"])
    squares = config.model_copy(update={"high_loss": "l2"})
    own = scale_mae.loss(squares, out.pred, arrays[1], out.masks.hidden)
    check(own, golden["loss_l2_l2"])
    context = encoder.Context(gsd=gsd)
    whole = encoder.encode(loaded.params["encoder"], config.encoder, arrays[0], context)
    check(whole.cls, golden["knn_feature_cls"])


RESIZED = "pos_embed_bicubic"
TABLES = [own for own in golden_files("rsfm", "pos_embed") if not own.id.startswith(RESIZED)]
assert TABLES


@pytest.mark.parametrize("file", TABLES)
def test_position_tables(file):
    golden = read(file)
    width, grid = golden["dim_grid"].tolist()
    check(positions.plain(width, grid), golden["plain_2d"])
    check(positions.ground(width, grid, jnp.asarray(golden["res"])), golden["grid_res"])


@pytest.mark.parametrize("file", golden_files("rsfm", RESIZED))
def test_resized_positions(file):
    golden = read(file)
    sizes = [name for name in golden if name.startswith("to_")]
    assert sizes
    for name in sizes:
        grid = int(name.removeprefix("to_"))
        own = positions.resize_positions(jnp.asarray(golden["pos_embed"][0]), grid)
        np.testing.assert_allclose(own, golden[name][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("file", golden_files("rsfm", "dofa"))
def test_embeddings_from_wavelengths(file):
    golden = read(file)
    _, patch, width = golden["config"].tolist()
    params = jax.tree.map(jnp.asarray, checkpoint.generator(checkpoint.Source(weights(golden))))
    sets = [name.removeprefix("waves").removesuffix("_um") for name in golden if "_um" in name]
    assert "" in sets
    for which in sets:
        made = wavelength.generate(params, jnp.asarray(golden[f"waves{which}_um"]))
        check(made.codes, golden[f"wave_feats{which}"])
        if not which:
            check(made.weight / wavelength.SCALE, golden["generated_weight"])
            check(made.bias / wavelength.SCALE, golden["generated_bias"])
        images = pixels(golden[f"images{which}"])
        for layout in ("permute", "raw_view"):
            config = EncoderConfig(
                width=width,
                heads=1,
                patch=patch,
                image_size=images.shape[1],
                channels=images.shape[-1],
                padding=1,
                positions="learned",
                kernel_layout=layout,
            )
            kernel = {"weight": wavelength.kernel(made.weight, config), "bias": made.bias}
            tokens = patches.embed(kernel, patches.cut(config, images))
            check(tokens, golden[f"tokens{which}_{layout}"])


@pytest.mark.parametrize("prefix", ["hf.", "oc."])
@pytest.mark.parametrize("file", golden_files("rsfm", "clip"))
def test_clip_in_both_layouts(file, prefix):
    golden = read(file)
    sizes = golden["config"].tolist()
    heads = {"vision_heads": sizes[2], "text_heads": sizes[5]}
    config, params = clip.from_tensors(weights(golden, prefix), **heads)
    image = clip.image_features(params, config, pixels(golden["pixel_values"])).features
    text = clip.text_features(params, config, jnp.asarray(golden["input_ids"])).features
    check(clip.normalize(image), golden["image_embeds"])
    check(clip.normalize(text), golden["text_embeds"])
    scale = params["logit_scale"]
    check(clip.similarity(image, text, scale), golden["logits_per_image"])
    check(contrastive.clip_loss(image, text, scale), golden["loss"])


@pytest.mark.skipif(not GEOCLIP.exists(), reason="needs JAXMETHODS_SHARED")
@pytest.mark.parametrize("file", golden_files("rsfm", "geoclip"))
def test_places_of_geoclip(file):
    golden = read(file)
    own = location.geoclip(location.load_geoclip(GEOCLIP), golden["coordinates"])
    check(own, golden["embeddings"], 1e-4)


@pytest.fixture(params=golden_files("rsfm", "protocols"))
def protocols(request):
    with jax.enable_x64(True):
        yield read(request.param)


def test_nearest_neighbors(protocols):
    names = ("knn_train", "knn_train_y", "knn_query")
    arrays = [jnp.asarray(protocols[name]) for name in names]
    settings = {"classes": protocols["knn_scores"].shape[1], "k": int(protocols["knn_k"])}
    settings["chunk"] = 8
    temperature = float(protocols["knn_T"])
    scores = neighbors.neighbor_scores(*arrays, temperature=temperature, **settings)
    check(scores, protocols["knn_scores"], WIDE)
    np.testing.assert_array_equal(jnp.argmax(scores, 1), protocols["knn_pred"])
    right = np.mean(np.asarray(jnp.argmax(scores, 1)) == protocols["knn_query_y"])
    assert right == protocols["knn_acc"]
    votes = neighbors.neighbor_scores(*arrays, weighted=False, **settings)
    check(votes, protocols["knn_votes"], WIDE)


def test_optimum_of_the_probe(protocols):
    train, labels = jnp.asarray(protocols["knn_train"]), jnp.asarray(protocols["knn_train_y"])
    scaling = linear_probe.standardizer(train)
    classes = protocols["probe_b"].shape[1]
    lams = jnp.asarray(protocols["probe_lams"])
    probe = linear_probe.probe_lbfgs(scaling(train), labels, lams, classes=classes, tolerance=1e-10)
    check(probe.objective, protocols["probe_obj"], WIDE)
    # The stored weights are themselves up to 4e-7 from the optimum (by Newton's method).
    check(probe.weight, protocols["probe_W"], 2e-6)
    check(probe.bias, protocols["probe_b"], 2e-6)
    assert np.all(probe.gradient < 1e-8)
    queries = scaling(jnp.asarray(protocols["knn_query"]))
    own = linear_probe.accuracies(probe, queries, jnp.asarray(protocols["knn_query_y"]))
    check(own, protocols["probe_acc"], 1e-6)


def test_recall(protocols):
    own = retrieval.retrieval(
        protocols["ret_image"], protocols["ret_text"], protocols["ret_text_image_index"]
    )
    for k in (1, 5, 10):
        assert own[f"image_to_text_R{k}"] == pytest.approx(float(protocols[f"ret_i2t_R{k}"]))
        assert own[f"text_to_image_R{k}"] == pytest.approx(float(protocols[f"ret_t2i_R{k}"]))
    assert own["mean_recall"] == pytest.approx(float(protocols["ret_mean_recall"]))


def test_several_labels(protocols):
    own = classification.multilabel(
        jnp.asarray(protocols["ml_score"]), jnp.asarray(protocols["ml_y"])
    )
    pinned = ("ap_per_class", "map_macro", "map_micro", "f1_per_class", "f1_macro", "f1_micro")
    for value, name in zip(own, pinned, strict=True):
        check(value, protocols[f"ml_{name}"], WIDE)


def test_classes_of_pixels(protocols):
    classes = len(protocols["seg_confusion"])
    matrix = segmentation.confusion(
        jnp.asarray(protocols["seg_y"]), jnp.asarray(protocols["seg_pred"]), classes
    )
    np.testing.assert_array_equal(matrix, protocols["seg_confusion"])
    own = segmentation.measures(matrix)
    pinned = ("iou", "miou", "f1", "mf1", "oa", "kappa")
    for value, name in zip(own, pinned, strict=True):
        check(value, protocols[f"seg_{name}"], WIDE)


def test_detected_boxes(protocols):
    names = ("det_boxes", "det_scores", "det_image", "gt_boxes", "gt_image")
    arrays = [protocols[name] for name in names]
    pinned = [name for name in protocols if name.startswith("AP")]
    assert pinned
    for name in pinned:
        threshold = int(name[2:4]) / 100
        own = detection.average_precision(*arrays, threshold=threshold)
        assert own == pytest.approx(float(protocols[name]), abs=WIDE)


@pytest.fixture(scope="module", params=golden_files("rsfm", "preproc_optim"))
def recipe(request):
    return read(request.param)


def test_sentinel_2_as_bytes(recipe):
    raw, names = recipe["s2_raw"], tuple(sensors.SENTINEL2)
    own = normalization.satmae_uint8(raw, names, sensors.FMOW_SENTINEL)
    np.testing.assert_array_equal(own, recipe["s2_uint8"])
    check(own / 255.0, recipe["s2_tensor"])


def test_learning_rates(recipe):
    epochs, warmup, rate, smallest = recipe["lr_cfg"].tolist()
    number = len(recipe["lr_every_half_epoch"])
    with jax.enable_x64(True):
        at = jnp.arange(number) * (epochs / number)
        own = schedules.warmup_cosine(at, rate, epochs, warmup, smallest)
        check(own, recipe["lr_every_half_epoch"], WIDE)


def test_layer_decay(recipe):
    own = schedules.layer_decay_scales(int(recipe["layer_decay_depth"]), 0.75)
    check(own, recipe["layer_decay_scales"], WIDE)


def test_steps_of_lars(recipe):
    params = {name: jnp.asarray(recipe[f"lars_{name}"][0]) for name in "Wb"}
    velocity = jax.tree.map(jnp.zeros_like, params)
    for step in range(len(recipe["lars_gW"])):
        gradient = {name: jnp.asarray(recipe[f"lars_g{name}"][step]) for name in "Wb"}
        params, velocity = schedules.lars_update(
            params, gradient, velocity, 0.3, 0.01, momentum=0.9, trust=0.001
        )
        for name in "Wb":
            check(params[name], recipe[f"lars_{name}"][step + 1])

"""CLIP against stored numbers, and against transformers where it is installed."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmethods.models import clip, hub
from jaxmethods.models.clip import vit
from tests.golden_files import FOLDER, golden_files, read

TINY = FOLDER / "merging" / "clip_tiny"
TOLERANCE = 2e-6
"""Of the largest magnitude."""


def assert_relative(actual, expected, tolerance=TOLERANCE, name=""):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.fixture(scope="module")
def loaded():
    return clip.load(TINY)


@pytest.fixture(scope="module", params=golden_files("merging", "clip_tiny_io"))
def golden(request):
    return read(request.param)


def images(golden):
    return jnp.asarray(golden["pixel_values"]).transpose(0, 2, 3, 1)


def test_the_vision_tower(loaded, golden):
    config, params = loaded.config, loaded.params

    @jax.jit
    def encode(params, pixels):
        taps = ("hidden", "token_means")
        return (
            clip.image_features(params, config, pixels, taps=taps),
            vit.embed(params["vision_model"], config.vision, pixels),
        )

    vision, embeddings = encode(params, images(golden))
    patches = golden["patch_embeds"]
    grid = patches.reshape(*patches.shape[:2], -1).swapaxes(1, 2)
    positions = params["vision_model"]["embeddings"]["position_embedding"]["weight"]
    assert_relative(embeddings[:, 1:] - positions[1:], grid)
    assert_relative(embeddings, golden["vision_embeddings"])
    for index, hidden in enumerate(vision.encoded.hidden):
        assert_relative(hidden, golden[f"vision_hidden_states_{index}"])
    np.testing.assert_allclose(
        vision.encoded.token_means, vision.encoded.hidden[1:].mean(2), atol=1e-6
    )
    assert_relative(vision.encoded.last, golden["vision_last_hidden_state"])
    assert_relative(vision.pooled, golden["vision_pooled"])
    assert_relative(vision.features, golden["image_features_raw"])
    assert_relative(clip.normalize(vision.features), golden["image_embeds"])


def test_the_text_tower_and_the_logits(loaded, golden):
    config, params = loaded.config, loaded.params
    ids, mask = golden["input_ids"], golden["attention_mask"]

    @jax.jit
    def encode(params, ids, mask):
        return (
            clip.text_features(params, config, ids, mask, taps=("hidden",)),
            clip.text_features(params, config, ids),
        )

    text, unmasked = encode(params, ids, mask)
    for index, hidden in enumerate(text.encoded.hidden):
        assert_relative(hidden, golden[f"text_hidden_states_{index}"])
    assert_relative(text.last, golden["text_last_hidden_state"])
    assert_relative(text.pooled, golden["text_pooled"])
    assert_relative(unmasked.pooled, golden["text_pooled_nomask"])
    assert_relative(text.features, golden["text_features_raw"])
    assert_relative(clip.normalize(text.features), golden["text_embeds"])
    scale = params["logit_scale"]
    logits = clip.similarity(golden["image_features_raw"], golden["text_features_raw"], scale)
    assert_relative(logits, golden["logits_per_image"])
    assert_relative(logits.T, golden["logits_per_text"])


def test_the_zero_shot_head(loaded, golden):
    head = clip.zero_shot_head(jnp.asarray(golden["zs_template_features"]))
    assert_relative(head, golden["zs_head"])
    scale = loaded.params["logit_scale"]
    logits = clip.classify(jnp.asarray(golden["image_embeds"]), head, scale)
    assert_relative(logits, golden["zs_logits"])


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_a_folder_round_trips_byte_for_byte(tmp_path, dtype):
    loaded = clip.load(TINY, dtype)
    clip.save(tmp_path / "copy", loaded.raw, loaded.params)
    assert json.loads((tmp_path / "copy/config.json").read_text()) == loaded.raw
    stored = load_file(TINY / "model.safetensors")
    copied = load_file(tmp_path / "copy/model.safetensors")
    assert stored.keys() == copied.keys()
    for name, tensor in stored.items():
        expected = tensor if dtype is None else tensor.astype(ml_dtypes.bfloat16)
        assert (copied[name].dtype, copied[name].shape) == (expected.dtype, expected.shape)
        assert copied[name].tobytes() == expected.tobytes(), name


def test_a_vision_tower_is_read_alone_or_out_of_the_whole_model(tmp_path, loaded):
    folder = tmp_path / "vision"
    folder.mkdir()
    raw = {**loaded.raw["vision_config"], "model_type": "clip_vision_model"}
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = load_file(TINY / "model.safetensors")
    tensors["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    save_file(tensors, folder / "model.safetensors")
    whole = clip.load(folder)
    clip.save(tmp_path / "alone", whole.raw, whole.params)
    alone = clip.load(tmp_path / "alone")
    assert alone.config.text is None
    jax.tree.map(np.testing.assert_array_equal, alone.params, whole.params)
    jax.tree.map(
        np.testing.assert_array_equal,
        alone.params["vision_model"],
        loaded.params["vision_model"],
    )
    with pytest.raises(ValueError, match="vision tower alone"):
        clip.text_features(alone.params, alone.config, jnp.zeros((1, 3), jnp.int32))


def test_real_sizes_have_the_published_number_of_parameters():
    sizes = {
        (32, 768, 12, 12): 87_456_000,
        (16, 768, 12, 12): 85_799_424,
        (14, 1024, 24, 16): 303_179_776,
    }
    for (patch, width, layers, heads), expected in sizes.items():
        config = vit.VisionConfig(
            patch_size=patch,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
        )
        shapes = jax.eval_shape(lambda config=config: vit.init(jax.random.key(0), config))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_what_is_wrong_with_a_folder_is_named(tmp_path, loaded):
    with pytest.raises(hub.HubError, match="expected model_type clip"):
        clip.config_of({"model_type": "bert"})
    with pytest.raises(hub.HubError, match="hidden_act"):
        clip.config_of({"model_type": "clip", "vision_config": {"hidden_act": "tanh"}})
    broken = {**loaded.params, "logit_scale": jnp.zeros(3)}
    with pytest.raises(hub.HubError, match="logit_scale"):
        clip.save(tmp_path / "broken", loaded.raw, broken)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"pixels: expected \[B, 32, 32, 3\]"):
        clip.image_features(loaded.params, loaded.config, jnp.zeros((2, 32, 31, 3)))
    with pytest.raises(ValueError, match="taps"):
        clip.image_features(loaded.params, loaded.config, jnp.zeros((2, 32, 32, 3)), taps=("q",))
    with pytest.raises(ValueError, match="at most 16 tokens"):
        clip.text_features(loaded.params, loaded.config, jnp.zeros((1, 17), jnp.int32))


@pytest.mark.slow
def test_a_head_from_templates_averages_over_them(tmp_path, loaded):
    tokenizers = pytest.importorskip("tokenizers")
    write_tokenizer(tmp_path, tokenizers)
    tokenizer = clip.load_tokenizer(tmp_path)
    ids, mask = clip.tokenize(tokenizer, ["A Cat", "a photo of a dog"], loaded.config)
    assert ids.shape == mask.shape == (2, 7)
    np.testing.assert_array_equal(mask.sum(1), [4, 7])
    names, templates = ["cat", "dog"], ["a photo of a {}.", "{c}"]
    head = clip.head_from_templates(loaded.params, loaded.config, tokenizer, names, templates)
    np.testing.assert_allclose(jnp.linalg.norm(head, axis=1), 1, atol=1e-6)

    def feature(text):
        ids, _ = clip.tokenize(tokenizer, [text], loaded.config)
        return clip.normalize(clip.text_features(loaded.params, loaded.config, ids).features)[0]

    expected = clip.normalize(feature("a photo of a cat.") + feature("cat"))
    np.testing.assert_allclose(head[0], expected, atol=1e-5)
    for texts, message in (("a cat", "got the text 'a cat'"), ([], "got none")):
        with pytest.raises(ValueError, match=f"texts: expected a list .*{message}"):
            clip.tokenize(tokenizer, texts, loaded.config)
        with pytest.raises(ValueError, match=f"class_names: expected a list .*{message}"):
            clip.head_from_templates(loaded.params, loaded.config, tokenizer, texts, templates)
    with pytest.raises(ValueError, match="templates"):
        clip.head_from_templates(loaded.params, loaded.config, tokenizer, names, ["a photo"])
    with pytest.raises(hub.HubError, match=r"holds no tokenizer\.json"):
        clip.load_tokenizer(TINY)


def test_tensors_of_a_wrapped_model_are_read(loaded):
    """DistributedDataParallel puts `module.` before all names; a scale may be a vector; OpenAI's
    own files hold three sizes."""
    tensors = load_file(TINY / "model.safetensors")
    vision, text = loaded.config.vision, loaded.config.text
    heads = {"vision_heads": vision.num_attention_heads, "text_heads": text.num_attention_heads}
    plain = clip.from_tensors(tensors, **heads).params
    tensors["logit_scale"] = tensors["logit_scale"].reshape(1)
    tensors |= {
        name: np.asarray(7) for name in ("input_resolution", "context_length", "vocab_size")
    }
    wrapped = clip.from_tensors({f"module.{n}": x for n, x in tensors.items()}, **heads).params
    jax.tree.map(np.testing.assert_array_equal, wrapped, plain)
    tensors["logit_scale"] = tensors["logit_scale"].astype(np.int8)
    with pytest.raises(
        hub.HubError, match="logit_scale: expected floating-point weights, got int8"
    ):
        clip.from_tensors(tensors, **heads)


@pytest.mark.parametrize("pooled_only", [False, True])
def test_no_images_and_no_texts_have_no_features(loaded, pooled_only):
    size, width = loaded.config.vision.image_size, loaded.config.projection_dim
    pixels, ids = jnp.ones((0, size, size, 3)), jnp.ones((0, 4), int)
    images = clip.image_features(loaded.params, loaded.config, pixels, pooled_only=pooled_only)
    assert images.features.shape == (0, width)
    assert clip.text_features(loaded.params, loaded.config, ids).features.shape == (0, width)


def test_a_text_that_is_too_long_keeps_its_end_mark(tmp_path, loaded):
    tokenizers = pytest.importorskip("tokenizers")
    write_tokenizer(tmp_path, tokenizers)
    longest = loaded.config.text.max_position_embeddings
    tokenizer = clip.load_tokenizer(tmp_path)
    whole = tokenizer.encode("cat " * longest).ids
    ids, mask = clip.tokenize(tokenizer, ["cat " * longest], loaded.config)
    np.testing.assert_array_equal(ids[0], [*whole[: longest - 1], whole[-1]])
    np.testing.assert_array_equal(mask, np.ones((1, longest)))


def test_a_text_is_its_first_end_mark(loaded):
    """What comes after it has no influence, and the mark needn't be the largest id."""
    end = 7
    text = loaded.config.text.model_copy(update={"eos_token_id": end})
    config = loaded.config.model_copy(update={"text": text})
    ids = jnp.array([[3, 11, end, 20, end], [3, 11, end, end, 5]])
    out = clip.text_features(loaded.params, config, ids)
    np.testing.assert_array_equal(out.pooled, out.last[:, 2])
    np.testing.assert_allclose(out.features[0], out.features[1], atol=1e-6)


def test_the_length_of_features_does_not_matter_to_a_classifier():
    features = jax.random.normal(jax.random.key(0), (3, 5))
    head = jax.random.normal(jax.random.key(1), (4, 5))
    units = features / jnp.linalg.norm(features, axis=1, keepdims=True)
    found = clip.classify(jnp.array([[1.0], [7.0], [0.1]]) * features, head, jnp.log(10.0))
    np.testing.assert_allclose(found, 10 * units @ head.T, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_long_features_of_half_precision_have_a_direction(dtype):
    features = (100 * jax.random.normal(jax.random.key(0), (3, 64))).astype(dtype)
    units = clip.normalize(features)
    assert units.dtype == dtype
    wide = features.astype(jnp.float32)
    expected = wide / jnp.linalg.norm(wide, axis=-1, keepdims=True)
    np.testing.assert_allclose(units.astype(jnp.float32), expected, rtol=jnp.finfo(dtype).eps)


def write_tokenizer(folder, tokenizers):
    """A byte-pair vocabulary of letters, with CLIP's two marks as its largest ids."""
    alphabet = sorted("abcdefghijklmnopqrstuvwxyz.")
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("o", "f</w>")]
    merges += [("p", "h"), ("ph", "o"), ("pho", "t"), ("phot", "o</w>")]
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *map("".join, merges)]
    vocabulary = {word: index for index, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": 97, "<|endoftext|>": 98}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def test_our_tokens_are_those_of_transformers(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tmp_path, tokenizers)
    theirs = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    ours = clip.load_tokenizer(tmp_path)
    for text in ["a photo of a cat.", "Photo  of DOG's", "xyz", "a cat<|endoftext|> dog"]:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text


@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_that_were_added_to_a_vocabulary_are_whole(tmp_path, file):
    """Those of textual inversion, say: their pieces would be other rows of the embedding."""
    tokenizers = pytest.importorskip("tokenizers")
    write_tokenizer(tmp_path, tokenizers)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    vocabulary |= {"<|startoftext|>": len(vocabulary) - 2, "<|endoftext|>": len(vocabulary) - 1}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    new = len(vocabulary)

    def add(number):
        described = {"added_tokens_decoder": {str(number): {"content": "<dog>", "special": True}}}
        content = {"<dog>": number} if file == "added_tokens.json" else described
        (tmp_path / file).write_text(json.dumps(content))

    add(new)
    first, last = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    ids = clip.load_tokenizer(tmp_path).encode("cat <dog> cat").ids
    assert ids == [first, vocabulary["cat</w>"], new, vocabulary["cat</w>"], last]
    add(new + 5)
    with pytest.raises(hub.HubError, match=f"'<dog>': expected id {new}, the next one, got"):
        clip.load_tokenizer(tmp_path)


@pytest.mark.slow
def test_transformers_gives_the_same_logits(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = clip.CLIPConfig(
        vision=vit.VisionConfig(
            hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2,
            image_size=24, patch_size=6, hidden_act="gelu", projection_dim=12,
        ),
        text=clip.TextConfig(
            vocab_size=50, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=9, eos_token_id=7, projection_dim=12,
        ),
        projection_dim=12,
    )  # fmt: skip
    params = clip.init(jax.random.key(0), config)
    params = jax.tree.map(lambda leaf: leaf + 0.02 * jnp.ones_like(leaf), params)
    raw = {
        "model_type": "clip",
        "projection_dim": 12,
        "vision_config": config.vision.model_dump(),
        "text_config": config.text.model_dump(),
    }
    clip.save(tmp_path / "model", raw, params)
    model = transformers.CLIPModel.from_pretrained(tmp_path / "model").eval()
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(3, 3, 24, 24)).astype(np.float32)
    ids = rng.integers(8, 50, (4, 9))
    ids[np.arange(4), [8, 3, 5, 2]] = 7
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(ids), pixel_values=torch.tensor(pixels))
    image = clip.image_features(params, config, pixels.transpose(0, 2, 3, 1)).features
    text = clip.text_features(params, config, jnp.asarray(ids)).features
    ours = clip.similarity(image, text, params["logit_scale"])
    assert_relative(ours, theirs.logits_per_image.numpy(), 1e-5)


def test_no_two_drawn_leaves_begin_alike():
    """A key used twice would give two leaves the same numbers, scaled."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    sizes["num_attention_heads"] = 1
    raw = {"model_type": "clip", "projection_dim": 8}
    raw["vision_config"] = sizes | {"image_size": 8, "patch_size": 4}
    raw["text_config"] = sizes | {"vocab_size": 20, "max_position_embeddings": 16}
    params = jax.jit(clip.init, static_argnums=1)(jax.random.key(0), clip.config_of(raw))
    leaves = [np.asarray(leaf).ravel()[:8] for leaf in jax.tree.leaves(params)]
    drawn = [leaf / leaf[0] for leaf in leaves if leaf.size == 8 and np.ptp(leaf) > 0]
    assert len(drawn) > 15
    for place, one in enumerate(drawn):
        assert not any(np.allclose(one, other, rtol=1e-3) for other in drawn[:place])

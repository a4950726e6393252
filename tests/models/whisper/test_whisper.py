"""Whisper: folders in and out, positions, transcription with a cache."""

from __future__ import annotations

import json
import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmethods.data.tokenizer import Tokenizer
from jaxmethods.models import hub, whisper
from jaxmethods.models.hub import HubError
from jaxmethods.models.whisper import transcriber
from jaxmethods.models.whisper.text import Heard
from tests.programs import weights

RAW = {
    "model_type": "whisper",
    "d_model": 8,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 10,
    "num_mel_bins": 5,
    "max_source_positions": 6,
    "max_target_positions": 9,
    "vocab_size": 11,
    "pad_token_id": 10,
    "torch_dtype": "float32",
}
CONFIG = whisper.read_config(RAW)


@cache
def params():
    return weights(whisper.init_params, CONFIG)


def features(clips=2):
    return jax.random.normal(jax.random.key(1), (clips, 5, 12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("whisper") / "model"
    whisper.save(place, RAW, CONFIG, params())
    return place


def test_a_folder_is_read_as_it_was_written(folder):
    loaded = whisper.load(folder)
    assert loaded.config == CONFIG
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, params()))
    names = hub.open_folder(folder).tensors
    assert "model.encoder.layers.1.self_attn.k_proj.weight" in names
    assert "model.encoder.layers.1.self_attn.k_proj.bias" not in names
    assert names["model.encoder.conv1.weight"].shape == (8, 5, 3)


def test_what_was_loaded_as_it_is_stored_is_written_back_unchanged(folder, tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params())
    whisper.save(tmp_path / "half", RAW | {"torch_dtype": "float16"}, CONFIG, half)
    loaded = whisper.load(tmp_path / "half", dtype=None)
    whisper.save(tmp_path / "again", loaded.raw, loaded.config, loaded.params)
    for name in ("model.safetensors", "config.json"):
        again, before = (tmp_path / one / name for one in ("again", "half"))
        assert again.read_bytes() == before.read_bytes()


def test_what_is_written_does_not_ask_for_a_file_of_the_folder_that_was_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "named")
    (tmp_path / "named" / "model.safetensors").rename(tmp_path / "named" / "ema.safetensors")
    raw = RAW | {"transformers_weights": "ema.safetensors"}
    (tmp_path / "named" / "config.json").write_text(json.dumps(raw))
    loaded = whisper.load(tmp_path / "named")
    whisper.save(tmp_path / "again", loaded.raw, loaded.config, loaded.params)
    jax.tree.map(np.testing.assert_array_equal, whisper.load(tmp_path / "again").params, params())


def test_a_head_that_is_not_the_embedding_is_kept(folder, tmp_path):
    """As in transformers 5, whatever the config says; an equal one is the embedding."""
    tensors = load_file(folder / "model.safetensors")
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"].copy()
    for name, change in (("equal", 0.0), ("other", 1.0)):
        shutil.copytree(folder, tmp_path / name)
        tensors["proj_out.weight"] += change
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    assert whisper.load(tmp_path / "equal").config == CONFIG
    loaded = whisper.load(tmp_path / "other")
    np.testing.assert_array_equal(loaded.params["decoder"]["head"], tensors["proj_out.weight"])
    whisper.save(tmp_path / "again", loaded.raw, loaded.config, loaded.params)
    assert whisper.load(tmp_path / "again").config == loaded.config
    heard = Heard(*np.ones((2, 2, 1, 6, 4, 2), np.float32))
    ids = jnp.asarray([[3, 1]])
    own = whisper.decode(loaded.params, loaded.config, ids, heard).logits
    tied = whisper.decode(params(), CONFIG, ids, heard).logits
    assert not np.allclose(own, tied)


def test_a_head_that_is_stored_alone_is_the_embedding_too(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "alone")
    tensors = load_file(folder / "model.safetensors")
    tensors["proj_out.weight"] = tensors.pop("model.decoder.embed_tokens.weight")
    save_file(tensors, tmp_path / "alone" / "model.safetensors", metadata={"format": "pt"})
    loaded = whisper.load(tmp_path / "alone")
    assert loaded.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params())


def test_words_that_were_added_behind_the_timestamps_may_be_said():
    """Tokenizers name all timestamps, or none: older ones end with `<|notimestamps|>`."""
    known = {"a": 0, "<|notimestamps|>": 1, "<|0.00|>": 2, "<|0.02|>": 3, "word": 5}
    for tokens in (known, {"a": 0, "<|notimestamps|>": 1, "word": 5}):
        tokenizer = Tokenizer(list, list, tokens, None, 0, {})
        banned = transcriber._timestamps(tokenizer, 6)
        assert np.flatnonzero(banned).tolist() == [2, 3, 4]


def test_folders_from_before_generation_configs_say_what_is_never_said(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RAW | {"suppress_tokens": [3]}))
    assert np.flatnonzero(transcriber._suppressed(tmp_path, 11)[0]).tolist() == [3]
    (tmp_path / "generation_config.json").write_text(json.dumps({"begin_suppress_tokens": [4]}))
    never, at_first = transcriber._suppressed(tmp_path, 11)
    assert (never.any(), np.flatnonzero(at_first).tolist()) == (False, [4])


@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        ("model.encoder.", ("model.decoder.embed_tokens.weight", "proj_out.weight")),
        ("encoder.", ("projector.weight", "classifier.bias")),
        ("", ()),
    ],
    ids=["whole, with a head of its own", "classifier", "encoder alone"],
)
def test_the_encoder_alone_leaves_the_rest_on_disk(folder, tmp_path, prefix, others):
    tensors = load_file(folder / "model.safetensors")
    start = "model.encoder."
    kept = {n.replace(start, prefix): x for n, x in tensors.items() if n.startswith(start)}
    kept |= {name: np.full((11, 8), place, np.float32) for place, name in enumerate(others)}
    shutil.copytree(folder, tmp_path / "part")
    save_file(kept, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    loaded = whisper.load(tmp_path / "part", encoder_only=True)
    assert set(loaded.params) == {"encoder"}
    jax.tree.map(np.testing.assert_array_equal, loaded.params["encoder"], params()["encoder"])


@pytest.mark.parametrize("beams", [1, 2])
def test_no_clips_have_no_text(beams):
    found = whisper.transcribe(
        params(), CONFIG, features(0), jnp.asarray([3]), end=10, new_tokens=2, beams=beams
    )
    assert found.tokens.shape == (0, 2)


def test_other_kinds_of_models_are_refused(tmp_path):
    for change, message in (
        ({"model_type": "llama"}, "model_type: expected 'whisper'"),
        ({"activation_function": "relu"}, "activation_function: expected 'gelu'"),
        ({"d_model": None}, "d_model: expected a positive integer"),
        ({"is_causal": False}, "is_causal: expected True"),  # a decoder that sees what follows
        ({"per_layer_config": {"0": {"dropout": 0.1}}}, "per_layer_config: expected nothing"),
    ):
        with pytest.raises(HubError, match=message):
            whisper.read_config(RAW | change)
    with pytest.raises(HubError, match="expected the sizes"):
        whisper.save(tmp_path / "x", RAW | {"vocab_size": 12}, CONFIG, params())


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_a_whisper_of_other_features_is_refused(folder, tmp_path, file):
    """It would hear what it was never trained on, and say so in no way."""
    shutil.copytree(folder, tmp_path / "model")
    usual = {"feature_size": 5, "sampling_rate": 16000, "hop_length": 160, "chunk_length": 0.12}

    def load(**changed):
        given = usual | {"feature_extractor_type": "WhisperFeatureExtractor"} | changed
        given = {"feature_extractor": given} if file == "processor_config.json" else given
        (tmp_path / "model" / file).write_text(json.dumps(given))
        return whisper.load(tmp_path / "model", encoder_only=True)

    assert load().config == CONFIG
    for name, value in (("hop_length", 128), ("n_fft", 512), ("dither", 0.1), ("feature_size", 8)):
        with pytest.raises(HubError, match=f"{file}: {name}: expected .*, got {value}"):
            load(**{name: value})


def test_fewer_frames_are_the_first_positions():
    found = whisper.encode(params()["encoder"], CONFIG.encoder, features()[:, :, :7]).last
    assert found.shape == (2, 4, 8)


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected \[B, 5, frames\]"):
        whisper.encode(params()["encoder"], CONFIG.encoder, jnp.zeros((1, 6, 12)))
    with pytest.raises(ValueError, match="expected at most 12 frames"):
        whisper.encode(params()["encoder"], CONFIG.encoder, jnp.zeros((1, 5, 14)))


def test_greedy_tokens_are_those_of_a_pass_without_a_cache():
    prompt, end = jnp.asarray([3, 1]), 10
    never = jnp.arange(11) == 4
    found = whisper.transcribe(
        params(), CONFIG, features(), prompt, end=end, new_tokens=6, suppressed=never
    )
    encoded = whisper.encode(params()["encoder"], CONFIG.encoder, features()).last
    heard = whisper.cross_keys(params(), CONFIG, encoded)
    decode = jax.jit(whisper.decode, static_argnums=1)
    for row in range(2):
        own = jax.tree.map(lambda leaf, row=row: leaf[:, row : row + 1], heard)
        ids, said = [3, 1], []
        while len(said) < 6 and end not in said:
            padded = jnp.asarray([(ids + said + [0] * 6)[:8]])  # What comes later is not heard.
            logits = decode(params(), CONFIG, padded, own).logits[0, 1 + len(said)]
            said.append(int(jnp.argmax(jnp.where(never, -jnp.inf, logits))))
        assert found.tokens[row].tolist() == said + [end] * (6 - len(said))
        assert int(found.lengths[row]) == len(said)


def brute_force(decode, heard, prompt, beams, new_tokens, end, never, at_first):
    """The same search, transcript by transcript, in NumPy."""
    known = [([], 0.0)]
    for number in range(new_tokens):
        more = []
        for said, score in known:
            if said and said[-1] == end:
                more.append((said, score))
                continue
            ids = jnp.asarray([([*prompt, *said] + [0] * 9)[:9]])  # What comes later isn't heard.
            logits = np.asarray(decode(params(), CONFIG, ids, heard).logits, np.float64)
            logits = logits[0, len(prompt) + len(said) - 1]
            logits[np.asarray(never if number else at_first)] = -np.inf
            chances = logits - np.log(np.sum(np.exp(logits)))
            more += [([*said, token], score + chance) for token, chance in enumerate(chances)]
        known = sorted(more, key=lambda one: -one[1])[:beams]
    return max(known, key=lambda one: one[1] / len(one[0]))[0]


@pytest.mark.slow
def test_beams_are_those_of_a_search_transcript_by_transcript():
    prompt, end, beams = [3, 1], 10, 3
    never, at_first = jnp.arange(11) == 4, jnp.isin(jnp.arange(11), jnp.asarray([4, end]))
    settings = {"end": end, "new_tokens": 5, "suppressed": never, "first_suppressed": at_first}
    found = whisper.transcribe(
        params(), CONFIG, features(3), jnp.asarray(prompt), beams=beams, **settings
    )
    encoded = whisper.encode(params()["encoder"], CONFIG.encoder, features(3)).last
    heard = whisper.cross_keys(params(), CONFIG, encoded)
    decode = jax.jit(whisper.decode, static_argnums=1)
    for row in range(3):
        own = jax.tree.map(lambda leaf, row=row: leaf[:, row : row + 1], heard)
        said = brute_force(decode, own, prompt, beams, 5, end, never, at_first)
        assert found.tokens[row].tolist() == said + [end] * (5 - len(said))
        assert int(found.lengths[row]) == len(said)


def test_no_beams_are_refused():
    with pytest.raises(ValueError, match="beams: expected at least 1"):
        whisper.transcribe(params(), CONFIG, features(), jnp.asarray([3]), end=10, beams=0)


@pytest.mark.slow
def test_a_clip_does_not_depend_on_the_clips_beside_it():
    settings = {"end": 10, "new_tokens": 5}
    both = whisper.transcribe(params(), CONFIG, features(), jnp.asarray([3]), **settings)
    alone = whisper.transcribe(params(), CONFIG, features()[1:], jnp.asarray([3]), **settings)
    np.testing.assert_array_equal(both.tokens[1:], alone.tokens)


def test_a_transcript_does_not_begin_with_what_is_banned_at_first():
    settings = {"end": 10, "new_tokens": 2}
    free = whisper.transcribe(params(), CONFIG, features(1), jnp.asarray([3]), **settings)
    banned = jnp.arange(11) == free.tokens[0, 0]
    found = whisper.transcribe(
        params(), CONFIG, features(1), jnp.asarray([3]), first_suppressed=banned, **settings
    )
    assert found.tokens[0, 0] != free.tokens[0, 0]


def test_a_transcript_ends_where_the_model_says_nan():
    """Its first token would be said again and again."""
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params())
    settings = {"end": 10, "new_tokens": 3}
    found = whisper.transcribe(broken, CONFIG, features(1), jnp.asarray([3]), **settings)
    np.testing.assert_array_equal(found.tokens, [[10] * 3])


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="new_tokens: expected 1 to 8"):
        whisper.transcribe(params(), CONFIG, features(), jnp.asarray([3, 1]), end=10, new_tokens=9)


@pytest.mark.slow
def test_transformers_opens_what_we_write(folder):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    ids = [[3, 1, 7]]
    with torch.no_grad():
        expected = theirs(
            input_features=torch.tensor(np.asarray(features(1))),
            decoder_input_ids=torch.tensor(ids),
        ).logits.numpy()
    encoded = whisper.encode(params()["encoder"], CONFIG.encoder, features(1)).last
    heard = whisper.cross_keys(params(), CONFIG, encoded)
    found = whisper.decode(params(), CONFIG, jnp.asarray(ids), heard).logits
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_sizes_of_large_v3_are_read():
    large = RAW | {"num_mel_bins": 128, "encoder_layers": 32, "decoder_layers": 4}
    config = whisper.read_config(json.loads(json.dumps(large)))
    assert config.features.n_mels == 128
    assert config.text.layers == 4


def test_fields_with_two_names_are_read_as_transformers_reads_them():
    """Released configs have both; transformers 5.24 takes the common name, wherever it stands."""
    for name, value, own in (
        ("num_hidden_layers", 3, "layers"),
        ("num_attention_heads", 1, "heads"),
        ("hidden_size", 16, "width"),
    ):
        for raw in (RAW | {name: value}, {name: value} | RAW):
            assert getattr(whisper.read_config(raw).encoder, own) == value
    assert whisper.read_config(RAW | {"num_hidden_layers": 3}).text == CONFIG.text


def test_a_folder_of_128_bins_and_three_layers_is_read_and_hears(tmp_path):
    raw = RAW | {"num_mel_bins": 128, "encoder_layers": 3}
    config = whisper.read_config(raw)
    whisper.save(tmp_path / "model", raw, config, weights(whisper.init_params, config))
    loaded = whisper.load(tmp_path / "model", encoder_only=True)
    assert loaded.config.encoder.layers == 3
    x = jax.random.normal(jax.random.key(1), (1, 128, 12))
    found = whisper.encode(loaded.params["encoder"], loaded.config.encoder, x).last
    assert found.shape == (1, 6, 8)
    assert jnp.all(jnp.isfinite(found))

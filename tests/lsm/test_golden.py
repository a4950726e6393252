"""Numbers of the published code: features, encoder, connector, logits, gradients, tokens, texts.

Files are found by the beginnings of their names and every size is read from arrays and configs;
tolerances and the meaning of the arrays: tests/golden/README.md.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

from jaxmethods.data.audio import pad_or_trim
from jaxmethods.data.log_mel import LogMelConfig, frame_lengths, log_mel, mel_filters
from jaxmethods.lsm import bias, checkpoint, prompts
from jaxmethods.lsm.augmentation import keep_response
from jaxmethods.lsm.connector import Speech, connect, cut
from jaxmethods.lsm.model import IGNORED, Text, assemble, response_losses
from jaxmethods.lsm.schedules import warmup_then_linear
from jaxmethods.lsm.transcripts.normalize import normalize_basic, normalize_english
from jaxmethods.lsm.transcripts.word_errors import corpus_errors, word_errors
from jaxmethods.lsm.windows import window_plan
from jaxmethods.models import decoder, hub, qformer, whisper
from jaxmethods.models.decoder.families.known import FAMILIES
from tests.golden_files import FOLDER, golden_files, read

HERE = FOLDER / "lsm"


def json_files(prefix):
    files = sorted(HERE.glob(f"{prefix}*.json"))
    assert files, f"no {prefix}*.json in {HERE}"
    return [pytest.param(file, id=file.stem) for file in files]


# Features


@pytest.mark.parametrize("file", golden_files("lsm", "logmel"))
def test_log_mel_is_the_published_extractors(file):
    golden = read(file)
    waves = {name.removeprefix("wave_"): name for name in golden if name.startswith("wave_")}
    cases = [(golden[name], f"logmel_{n}", f"pad_value_{n}", int(n)) for n, name in waves.items()]
    for name in (name for name in golden if name.startswith("speech_logmel_")):
        cases.append((golden["speech_int16"], name, "speech_pad_value", len(golden[name])))
    assert cases
    for wave, name, pad_name, bins in cases:
        expected = golden[name]
        found = np.asarray(log_mel(pad_or_trim(wave)[0], LogMelConfig(n_mels=bins)))
        assert found.shape == (bins, 3000)
        errors = np.abs(found[:, : expected.shape[1]] - expected)
        assert errors.max() <= 5e-4
        assert np.quantile(errors, 0.999) <= 2e-5
        np.testing.assert_allclose(found[:, expected.shape[1] :], golden[pad_name], atol=2e-5)
        if f"mask_sum_{bins}" in golden and name.startswith("logmel"):
            assert frame_lengths(len(wave))[0] == golden[f"mask_sum_{bins}"]
            sums = found[:, : expected.shape[1]].astype(float).sum(0)
            np.testing.assert_allclose(sums, golden[f"colsum_{bins}"], atol=bins * 2e-5)


@pytest.mark.parametrize("file", golden_files("lsm", "logmel"))
def test_mel_filters_and_silence(file):
    golden = read(file)
    for name in (name for name in golden if name.startswith("mel_filters_")):
        found = mel_filters(golden[name].shape[1])
        np.testing.assert_allclose(found, golden[name], atol=1e-8)
    silence = log_mel(jnp.zeros(480_000))
    np.testing.assert_array_equal(silence, golden["silence_value"])


@pytest.mark.parametrize("file", golden_files("lsm", "lengths_windows"))
def test_lengths_and_windows(file):
    golden = read(file)
    samples, frames, encoded = golden["samples_maskframes_encframes"].T
    np.testing.assert_array_equal(frame_lengths(samples), [frames, encoded])
    for length, kernel, stride, windows in golden["T_kernel_stride_L"]:
        plan = window_plan(int(length))
        if kernel:
            assert plan == (kernel, windows)
            assert kernel == stride
        else:  # the published code fails here
            assert plan == (1, length)


# Whisper


def formula_features(golden, bins, frames):
    phase = float(golden["formula_phase"])
    m, t = np.arange(bins)[:, None].astype(float), np.arange(frames)[None].astype(float)
    waves = 0.6 * np.sin(0.011 * (m + 1) * phase + 0.017 * t)
    return (waves + 0.4 * np.cos(0.0007 * (m + 3) * t * phase)).astype(np.float32)


@pytest.mark.parametrize("file", golden_files("lsm", "whisper_encoder_full"))
def test_whisper_encoder_of_a_folder(file):
    golden = read(file)
    ending = file.stem.removeprefix("whisper_encoder_full")
    folder = next(f for f in (HERE / f"tiny_whisper{ending}", HERE / "tiny_whisper") if f.is_dir())
    loaded = whisper.load(folder)
    config, params = loaded.config.encoder, loaded.params["encoder"]
    features = formula_features(golden, config.n_mels, 2 * config.positions)
    known = golden["features_first8_cols"]
    np.testing.assert_array_equal(features[:, : known.shape[1]], known)
    encode = jax.jit(lambda params, x: whisper.encode(params, config, x, hidden=True))
    found = encode(params, features[None])
    for ours, name in (
        (found.hidden[0, 0], "embed_plus_pos_every50"),
        (found.hidden[1, 0], "after_layer0_every50"),
        (found.last[0], "last_hidden_every50"),
    ):
        np.testing.assert_allclose(ours[:: len(ours) // len(golden[name])], golden[name], atol=2e-5)
    mean = float(jnp.mean(jnp.abs(found.last)))
    assert mean == pytest.approx(float(golden["last_hidden_mean_abs"]), abs=2e-5)
    np.testing.assert_allclose(params["positions"][:4], golden["pos_first4"], atol=1e-6)
    np.testing.assert_allclose(params["positions"][-1], golden["pos_last"], atol=1e-6)
    own = whisper.sinusoids(config.positions, config.width)
    # Checkpoints hold sines of angles that were rounded to float32.
    np.testing.assert_allclose(own, params["positions"], atol=1e-4)


# The whole model


def config_json(sizes):
    """A config.json in the layout of the published code."""
    return {
        "whisper_config": {
            "d_model": sizes["wd"],
            "encoder_layers": sizes["wl"],
            "encoder_attention_heads": sizes["wh"],
            "encoder_ffn_dim": sizes["wf"],
            "num_mel_bins": sizes["mel"],
            "max_source_positions": sizes["src"],
        },
        "llama_config": {
            "hidden_size": sizes["ld"],
            "num_attention_heads": sizes["lh"],
            "num_key_value_heads": sizes["lkv"],
            "num_hidden_layers": sizes["ll"],
            "intermediate_size": sizes["lf"],
            "vocab_size": sizes["vocab"],
            "rope_theta": sizes["rope_theta"],
            "rms_norm_eps": sizes["rms_norm_eps"],
        },
        "speech_qformer_layer": sizes["ql"],
        "speech_qformer_token_num": sizes["nq"],
        "second_per_frame": sizes["second_per_frame"],
        "second_stride": sizes["second_stride"],
    }


def beside(file, prefix, kind):
    """The file of the same set (`lsm_forward_v2` and `lsm_weights_v2`), or the only one."""
    found = sorted(HERE.glob(f"{prefix}*{kind}"))
    own = re.search(r"_v\d+", file.stem)
    return next((one for one in found if own and own[0] in one.stem), found[0])


LOADED: dict[Path, checkpoint.Published] = {}


def load_model(file, folder):
    weights = beside(file, "lsm_weights", ".npz")
    if weights not in LOADED:
        sizes = json.loads(beside(file, "lsm_config", ".json").read_text())
        save_file(read(weights), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config_json(sizes)))
        LOADED[weights] = checkpoint.load_published(folder, heads=sizes["qh"])
    return LOADED[weights]


def text_of(golden):
    return Text(
        golden["in_input_ids"],
        golden["in_attention_mask"] > 0,
        golden["in_suffix_input_ids"],
        golden["in_suffix_attention_mask"] > 0,
        golden["in_labels"],
    )


def encoded_of(model, golden):
    """The encoder's frames up to the longest clip's, as published, and lengths."""
    mask = golden["in_speech_attention_mask"]
    lengths = (mask.sum(1) - 1) // 2 + 1
    encode = jax.jit(lambda p, x: whisper.encode(p, model.encoder, x).last)
    found = encode(model.params["encoder"], golden["in_speech_values"])
    return found[:, : lengths.max()], jnp.asarray(lengths)


def mean_loss(model, params, encoded, lengths, text, padding=False):
    speech = connect(params["connector"], model.connector, encoded, lengths)
    rows = assemble(params["language_model"], speech, text)
    losses, learned = response_losses(
        params["language_model"],
        model.language_model,
        rows,
        text.suffix.shape[1],
        reference_padding=padding,
    )
    return jnp.sum(losses) / jnp.sum(learned)


FORWARD = [one for one in golden_files("lsm", "lsm_forward") if "padded" not in one.id]
PADDED = [one for one in golden_files("lsm", "lsm_forward") if "padded" in one.id]


@pytest.fixture(scope="module", params=FORWARD)
def forward(request, tmp_path_factory):
    file = request.param
    golden = read(file)
    model = load_model(file, tmp_path_factory.mktemp("model"))
    encoded, lengths = encoded_of(model, golden)
    return golden, model, encoded, lengths


def test_encoder_frames_and_windows(forward):
    golden, model, encoded, lengths = forward
    np.testing.assert_array_equal(lengths, golden["output_lengths"])
    np.testing.assert_allclose(encoded, golden["encoder_last_hidden"], atol=5e-5)
    program = jax.jit(lambda params, x: cut(params, model.connector, x, lengths).frames)
    windows = program(model.params["connector"], encoded)
    np.testing.assert_allclose(
        windows.reshape(golden["windows"].shape), golden["windows"], atol=5e-5
    )


def test_query_former(forward):
    golden, model, _, _ = forward
    own = model.connector.qformer
    program = jax.jit(lambda params, x: qformer.read(params, own, x))
    found = program(model.params["connector"]["qformer"], golden["windows"])
    np.testing.assert_allclose(found.states, golden["qformer_out"], atol=5e-5)


def check_rows(golden, model, encoded, lengths, padding):
    text, params = text_of(golden), model.params

    @jax.jit
    def program(params, encoded, text):
        speech = connect(params["connector"], model.connector, encoded, lengths)
        rows = assemble(params["language_model"], speech, text)
        positions = jnp.broadcast_to(jnp.arange(rows.mask.shape[1]), rows.mask.shape)
        logits = decoder.forward(
            params["language_model"],
            model.language_model,
            inputs_embeds=rows.embeds,
            mask=rows.mask,
            positions=positions if padding else None,
        ).logits
        return rows, logits, mean_loss(model, params, encoded, lengths, text, padding)

    rows, logits, loss = program(params, encoded, text)
    np.testing.assert_allclose(rows.embeds, golden["inputs_embeds"], atol=5e-5)
    np.testing.assert_array_equal(rows.mask, golden["cat_attention_mask"])
    np.testing.assert_array_equal(rows.labels, golden["cat_labels"])
    valid = np.asarray(rows.mask)
    np.testing.assert_allclose(logits[valid], golden["logits"][valid], atol=2e-4)
    assert float(loss) == pytest.approx(float(golden["loss"]), abs=1e-5)


def test_embeddings_logits_and_loss(forward):
    check_rows(*forward, padding=False)


def test_gradients(forward):
    golden, model, encoded, lengths = forward
    trained = {name: model.params[name] for name in ("connector", "language_model")}
    gradient = jax.jit(
        jax.grad(lambda params: mean_loss(model, params, encoded, lengths, text_of(golden)))
    )(trained)
    norm = float(optax.global_norm(gradient))
    assert norm == pytest.approx(float(golden["global_grad_norm"]), rel=1e-4)
    stored = stored_names(model, gradient)
    names = [name for name in golden if name.startswith("grad:")]
    assert names
    for name in names:
        expected, found = golden[name], stored[name.removeprefix("grad:")]
        atol = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=atol)


def stored_names(model, params):
    """Leaves under the names of the published code."""
    found = {}
    width, outputs = model.encoder.width, model.language_model.width
    table = checkpoint.connector_table(model.connector, width, outputs)
    for entry in decoder_table(model.language_model):
        table.append(entry)
    leaves = {
        "/".join(str(part.key) for part in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for entry in table:
        for layer, name in enumerate(entry.names()):
            own = [leaves[leaf][layer] if entry.layers else leaves[leaf] for leaf in entry.leaves]
            found[name] = np.asarray(entry.join(own))
    return found


def decoder_table(config):
    return [
        entry._replace(
            name=f"llama_model.{entry.name}",
            leaves=tuple(f"language_model/{leaf}" for leaf in entry.leaves),
        )
        for entry in FAMILIES["llama"].table(config)
    ]


def test_attribution(forward):
    golden, model, encoded, lengths = forward

    @jax.jit
    def program(params, encoded, text):
        speech = connect(params["connector"], model.connector, encoded, lengths)
        own = params["language_model"]
        rows = assemble(own, speech, text)
        return bias.attribute(own, model.language_model, rows, golden["segment_ids"])

    found = program(model.params, encoded, text_of(golden))
    for ours, name in (
        (found.attention_share, "attn_share"),
        (found.saliency, "saliency_mean"),
        (found.gradient_input, "gradxinput"),
        (found.gradient_input_share, "gradxinput_share"),
    ):
        expected = golden[name]
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(found.attention_share.sum(1), 1, rtol=1e-5)


def greedy(model, golden, encoded, lengths):
    """As published: the first three ids of the suffix are given."""
    text = text_of(golden)
    given = Text(*(leaf[:, :3] if place > 1 else leaf for place, leaf in enumerate(text)))

    @jax.jit
    def program(params, encoded, given):
        speech = connect(params["connector"], model.connector, encoded, lengths)
        rows = assemble(params["language_model"], speech, given)
        return decoder.generate(
            params["language_model"],
            model.language_model,
            inputs_embeds=rows.embeds,
            mask=rows.mask,
            new_tokens=golden["greedy_batch_tokens"].shape[1],
        ).tokens

    return program(model.params, encoded, given)


def test_greedy_tokens_of_a_batch_and_of_single_clips(forward):
    golden, model, encoded, lengths = forward
    np.testing.assert_array_equal(
        greedy(model, golden, encoded, lengths), golden["greedy_batch_tokens"]
    )
    for row, length in enumerate(np.asarray(lengths)):
        own = {
            name: array[row : row + 1] if name.startswith("in_") else array
            for name, array in golden.items()
        }
        alone = greedy(model, own, encoded[row : row + 1, :length], lengths[row : row + 1])
        np.testing.assert_array_equal(alone[0], golden["greedy_single_tokens"][row])


def test_frequencies_that_old_language_models_hold_are_no_weights(tmp_path):
    """Vicuna's checkpoints have them, and what was saved with it."""
    (tmp_path / "plain").mkdir()
    (file,) = PADDED[0].values
    known = load_model(file, tmp_path / "plain")
    tensors = read(beside(file, "lsm_weights", ".npz"))
    tensors["llama_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    sizes = json.loads(beside(file, "lsm_config", ".json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config_json(sizes)))
    found = checkpoint.load_published(tmp_path, heads=sizes["qh"])
    jax.tree.map(np.testing.assert_array_equal, found.params, known.params)


@pytest.mark.parametrize("kept", ["both, equal", "both", "head"])
def test_a_tied_language_model_may_store_its_head(tmp_path, kept):
    """As everywhere: an equal head is the embedding, another one is kept."""
    (file,) = PADDED[0].values
    tensors = read(beside(file, "lsm_weights", ".npz"))
    embedding, head = "llama_model.model.embed_tokens.weight", "llama_model.lm_head.weight"
    if kept == "both, equal":
        tensors[head] = tensors[embedding]
    own = tensors[head]
    if kept == "head":
        del tensors[embedding]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    sizes = json.loads(beside(file, "lsm_config", ".json").read_text())
    config = config_json(sizes)
    config["llama_config"]["tie_word_embeddings"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = checkpoint.load_published(tmp_path, heads=sizes["qh"])
    assert found.language_model.tied == (kept != "both")
    params = found.params["language_model"]
    stored = params["head"]["kernel"].T if kept == "both" else params["embed"]["tokens"]
    np.testing.assert_array_equal(stored, own)


@pytest.mark.parametrize("file", PADDED)
def test_padding_between_prompt_and_speech(file, tmp_path):
    golden = read(file)
    model = load_model(file, tmp_path)
    encoded, lengths = encoded_of(model, golden)
    check_rows(golden, model, encoded, lengths, padding=True)
    text = text_of(golden)
    trained = {name: model.params[name] for name in ("connector", "language_model")}
    gradient = jax.jit(
        jax.grad(lambda params: mean_loss(model, params, encoded, lengths, text, padding=True))
    )(trained)
    norm = float(optax.global_norm(gradient))
    assert norm == pytest.approx(float(golden["global_grad_norm"]), rel=1e-4)


@pytest.mark.parametrize("file", PADDED)
def test_a_row_without_padding_counted_has_the_loss_it_has_alone(file, tmp_path):
    golden = read(file)
    model = load_model(file, tmp_path)
    encoded, lengths = encoded_of(model, golden)
    text, own = text_of(golden), model.params["language_model"]

    @jax.jit
    def program(speech, text):
        rows = assemble(own, speech, text)
        return response_losses(own, model.language_model, rows, text.suffix.shape[1])[0]

    connector = model.params["connector"]
    speech = jax.jit(lambda: connect(connector, model.connector, encoded, lengths))()
    losses = program(speech, text)
    for row in range(len(losses)):
        keep = [np.asarray(mask[row]) for mask in (text.prefix_mask, text.suffix_mask)]
        alone = Text(
            text.prefix[row : row + 1, keep[0]],
            np.ones((1, keep[0].sum()), bool),
            text.suffix[row : row + 1, keep[1]],
            np.ones((1, keep[1].sum()), bool),
            text.labels[row : row + 1, keep[1]],
        )
        one = Speech(speech.tokens[row : row + 1], speech.mask[row : row + 1])
        own_losses = program(one, alone)
        assert float(own_losses.sum()) == pytest.approx(float(losses[row].sum()), abs=1e-5)


@pytest.mark.parametrize("absorb", [True, False])
@pytest.mark.parametrize("file", golden_files("lsm", "qformer_multi_query"))
def test_query_former_with_several_queries(file, absorb, tmp_path):
    golden = read(file)
    weights = {name[2:]: array for name, array in golden.items() if name.startswith("w:")}
    layers = len({name.split(".")[2] for name in weights if name.startswith("encoder.layer.")})
    width, heads = golden["query_tokens"].shape[2], golden["cross_attn_layer0"].shape[1]
    inner = len(weights["encoder.layer.0.intermediate_query.dense.weight"])
    config = qformer.QFormerConfig(
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=inner,
        queries=golden["query_tokens"].shape[1],
    )
    inputs = golden["windows"].shape[2]
    save_file(weights, tmp_path / "qformer.safetensors")
    shapes = jax.eval_shape(lambda: qformer.init(jax.random.key(0), config, inputs))
    shapes = {name: leaf for name, leaf in shapes.items() if name != "queries"}
    table = checkpoint.qformer_table(config, inputs, "", "")
    table = [
        entry._replace(leaves=tuple(leaf.removeprefix("/") for leaf in entry.leaves))
        for entry in table
    ]
    params = hub.read_params(
        hub.open_file(tmp_path / "qformer.safetensors"), table, shapes, ignore=lambda name: True
    )
    params["queries"] = golden["query_tokens"][0]
    found = jax.jit(
        lambda params, x: qformer.read(params, config, x, attention=True, absorb=absorb)
    )(params, golden["windows"])
    np.testing.assert_allclose(found.states, golden["qformer_out"], atol=2e-5)
    np.testing.assert_allclose(found.attention[0], golden["cross_attn_layer0"], atol=2e-5)


# Texts


def llama_tokenizer():
    """The Llama-2 tokenizer where someone has it; others write other ids."""
    place = os.environ.get("JAXMETHODS_LLAMA2")
    if not place or not (Path(place) / "tokenizer.json").is_file():
        return None
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(Path(place) / "tokenizer.json"))


class RecordedTokenizer:
    """Ids of the texts that a golden case has; anything else is an error."""

    def __init__(self, case):
        begin, end = case["prefix_ids"][0], case["label_ids"][-1]
        self.end = "</s>"
        self.known = {
            case["prefix_string"]: case["prefix_ids"],
            case["suffix_string"]: [begin, *case["suffix_ids"]],
            case["response"] + self.end: [begin, *case["label_ids"]],
        }
        assert end == 2

    def __call__(self, text):
        return self.known[text]


@pytest.mark.parametrize("file", json_files("prompt_layout"))
def test_prompts_letter_by_letter(file):
    tokenizer = llama_tokenizer()
    for case in json.loads(file.read_text())["cases"]:
        template = prompts.VICUNA
        assert template.render_prefix(case["instruction"]) == case["prefix_string"]
        assert template.suffix == case["suffix_string"]
        found = template.render_text_prompt(case["instruction"], case["transcript"])
        assert found == case["augmentation_prompt"]
        encoders = [RecordedTokenizer(case)]
        if tokenizer is not None:
            encoders.append(lambda text: tokenizer.encode(text).ids)
        for encode in encoders:
            rendered = prompts.render(case["instruction"], case["response"], encode)
            assert rendered.prefix == case["prefix_ids"]
            assert rendered.suffix == case["suffix_input_ids"]
            assert rendered.labels == case["labels"]
            assert prompts.keeps_length(rendered.labels) == case["kept_by_length_filter"]
        assert case["labels"].count(IGNORED) == len(case["suffix_ids"])


@pytest.mark.parametrize("file", json_files("text_norm_wer"))
def test_normalized_transcripts_and_word_errors(file):
    golden = json.loads(file.read_text())
    for case in golden["normaliser_cases"]:
        assert normalize_english(case["text"]) == case["english"]
        assert normalize_basic(case["text"]) == case["basic"]
    pairs = golden["wer_pairs"]
    for pair in pairs:
        texts = [normalize_english(pair[name]) for name in ("ref", "hyp")]
        assert texts == [pair["ref_norm"], pair["hyp_norm"]]
        counts = [pair[n] for n in ("substitutions", "deletions", "insertions", "ref_words")]
        assert list(word_errors(*texts)) == counts
    whole = corpus_errors(*([pair[name] for pair in pairs] for name in ("ref_norm", "hyp_norm")))
    assert whole.rate == pytest.approx(golden["corpus_wer"])


@pytest.mark.parametrize("file", golden_files("lsm", "lr_schedule"))
def test_learning_rates(file):
    golden = read(file)
    sizes = [golden[name].item() for name in ("peak", "warmup", "total")]
    for kind in ("log", "linear"):
        rate = warmup_then_linear(*sizes, kind=kind)
        expected = golden[f"lr_{kind}_warmup"]
        with jax.enable_x64(True):
            exact = rate(jnp.asarray(golden["step"], jnp.float64))
            np.testing.assert_allclose(exact, expected, atol=1e-12, rtol=0)
        np.testing.assert_allclose(rate(golden["step"]), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("file", json_files("augmentation_filter"))
def test_which_answers_stay(file):
    for case in json.loads(file.read_text()):
        assert keep_response(case["text"]) == case["intended_keeps"]
        # The published rule fails for an empty answer, which we drop.
        assert keep_response(case["text"], compat=True) == bool(case["reference_keeps"])

"""Checkpoints that must not be merged, tensors that must be left alone, and whole folders."""

from __future__ import annotations

import json
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmethods.merging.checkpoints.compatibility import MergeError
from jaxmethods.merging.checkpoints.streaming import merge_checkpoints
from jaxmethods.merging.checkpoints.tokens import shared_tokens
from jaxmethods.merging.config import MergeConfig, Rule
from jaxmethods.models import hub

LLAMA = {
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
}


def weights(seed=0, names=("a.weight", "b.weight"), shape=(6, 4)):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name in names}


def folder(path, tensors, config=None):
    path.mkdir()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config or {"model_type": "toy"}))
    return path


def merge(tmp_path, base, *experts, out="out", algorithm="average", **config):
    given = MergeConfig(base=base, experts=experts, algorithm=algorithm, **config)
    merge_checkpoints(given, tmp_path / out)
    found = hub.open_folder(tmp_path / out)
    return {name: np.array(found.view(name)) for name in found.tensors}


def refused(tmp_path, message, *folders, **config):
    """One line, and nothing is left behind."""
    before = set(tmp_path.iterdir())
    with pytest.raises(MergeError, match=message) as caught:
        merge(tmp_path, *folders, **config)
    assert "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before


# Configs


def pair(tmp_path, ours, theirs):
    return [
        folder(tmp_path / name, weights(seed), config)
        for seed, (name, config) in enumerate((("base", ours), ("expert", theirs)))
    ]


def without(*names, **changed):
    return {k: v for k, v in LLAMA.items() if k not in names} | changed


V5 = {"rope_type": "default", "rope_theta": 10000.0}
MISTRAL, GEMMA_2 = without(model_type="mistral"), without(model_type="gemma2")
GEMMA_3 = without(model_type="gemma3_text", num_hidden_layers=6)
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SAME = {
    "transformers 4 and 5": (LLAMA, without("rope_theta", rope_parameters=V5)),
    "the usual base, not said": (LLAMA, without("rope_theta")),
    "scaling in both layouts": (
        without(rope_scaling={"type": "linear", "factor": 2.0}),
        without("rope_theta", rope_parameters=V5 | {"rope_type": "linear", "factor": 2.0}),
    ),
    "scaling by 1": (LLAMA, without(rope_scaling={"rope_type": "linear", "factor": 1.0})),
    "original positions at two levels": (
        without(rope_scaling=LLAMA3 | {"rope_type": "llama3"}, original_max_position_embeddings=16),
        without(
            rope_scaling=LLAMA3 | {"rope_type": "llama3", "original_max_position_embeddings": 16}
        ),
    ),
    "two names of an activation": (
        without(hidden_act="gelu_new"),
        without(hidden_act="gelu_pytorch_tanh"),
    ),
    "key-value heads of old configs": (
        without("num_key_value_heads"),
        without(num_key_value_heads=4),
    ),
    "a window that isn't used": (
        without(sliding_window=None),
        without(sliding_window=16, use_sliding_window=False),
    ),
    "types of layers that aren't there": (
        without(layer_types=["full_attention"] * 2),
        without(layer_types=["full_attention"] * 2 + ["sliding_attention"] * 2),
    ),
    "a window that is off, not said": (LLAMA, without(sliding_window=None)),
    "Mistral's window, not said": (MISTRAL, MISTRAL | {"sliding_window": 4096}),
    "Gemma 2's caps, not said": (
        GEMMA_2,
        GEMMA_2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "Qwen's unused window": (
        without(model_type="qwen2"),
        without(model_type="qwen2", sliding_window=16, layer_types=["full_attention"] * 2),
    ),
    "Gemma 3's layers, not said": (
        GEMMA_3,
        GEMMA_3 | {"layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    ),
    "Gemma 3's layers by another number": (
        GEMMA_3 | {"sliding_window_pattern": 3},
        GEMMA_3 | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2},
    ),
    "what only training needs": (LLAMA, without(attention_dropout=0.1, max_position_embeddings=99)),
    "what drew the first weights": (
        without(initializer_factor=1.0, adam_epsilon=1e-8, hidden_dropout_prob=0.1),
        without(initializer_factor=2.0, adam_epsilon=1e-6, hidden_dropout_prob=0.2),
    ),
    "one for each type of layer": (
        without(rope_theta=1e6, rope_local_base_freq=1e4),
        without(
            "rope_theta",
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_configs_that_mean_the_same_are_merged(name, tmp_path):
    base, expert = pair(tmp_path, *SAME[name])
    found = merge(tmp_path, base, expert)
    np.testing.assert_array_equal(found["a.weight"], weights(1)["a.weight"])


DIFFERENT = {
    "base": (LLAMA, without(rope_theta=5e5), r"rope_theta 10000\.0 like the base, got 500000\.0"),
    "base in two layouts": (
        LLAMA,
        without("rope_theta", rope_parameters=V5 | {"rope_theta": 5e5}),
        r"rope_theta 10000\.0 like the base, got 500000\.0",
    ),
    "base, not said": (without("rope_theta"), without(rope_theta=1e6), "rope_theta 10000 like"),
    "scaling": (
        LLAMA,
        without(rope_scaling={"rope_type": "linear", "factor": 4.0}),
        "rope_scaling None like the base",
    ),
    "scaling beside parameters": (
        without(rope_parameters=V5),
        without(rope_parameters=V5, rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        "rope_scaling None like the base",
    ),
    "factor": (
        without(rope_scaling={"rope_type": "linear", "factor": 2.0}),
        without("rope_theta", rope_parameters=V5 | {"rope_type": "linear", "factor": 4.0}),
        "rope_scaling .*2.0.* like the base",
    ),
    "original positions": (
        without(rope_scaling=LLAMA3 | {"rope_type": "llama3"}),
        without(
            rope_scaling=LLAMA3 | {"rope_type": "llama3", "original_max_position_embeddings": 16}
        ),
        "rope_scaling .*64.* like the base",
    ),
    "partial": (
        without(partial_rotary_factor=0.5),
        without(rope_parameters=V5 | {"partial_rotary_factor": 0.25}),
        "partial_rotary_factor 0.5 like the base, got 0.25",
    ),
    "heads": (LLAMA, without(num_attention_heads=8), "num_attention_heads 4 like the base, got 8"),
    "key-value heads": (LLAMA, without(num_key_value_heads=1), "num_key_value_heads 2 like"),
    "key-value heads, not said": (LLAMA, without("num_key_value_heads"), "num_key_value_heads 2"),
    "activation": (
        LLAMA,
        without(hidden_act="gelu"),
        "hidden_act 'silu' like the base, got 'gelu'",
    ),
    "epsilon": (LLAMA, without(rms_norm_eps=1e-6), "rms_norm_eps 1e-05 like the base, got 1e-06"),
    **{
        f"{kind}: {name}": (
            {"model_type": kind, name: one},
            {"model_type": kind, name: other},
            f"{name} {one!r} like the base, got {other!r}",
        )
        # All of these change what transformers computes with the same tensors.
        for kind, name, one, other in (
            ("t5", "dense_act_fn", "relu", "gelu"),
            ("distilbert", "activation", "gelu", "relu"),
            ("openai-gpt", "afn", "gelu", "relu"),
            ("hubert", "feat_extract_activation", "gelu", "relu"),
            ("falcon_h1", "key_multiplier", 1.0, 2.0),
            ("minimax", "mlp_alpha_factor", 1, 2),
            ("gpt_oss", "swiglu_limit", 7.0, 9.0),
            ("falcon_mamba", "mixer_rms_eps", 1e-6, 1e-5),
            ("xglm", "attention_heads", 4, 8),
            ("gptj", "rotary_dim", 64, 32),
            ("modernbert", "local_attention", 128, 64),
            ("albert", "num_hidden_layers", 12, 6),
        )
    },
    "window": (
        without(sliding_window=16),
        without(sliding_window=None),
        "sliding_window 16 like the base, got None",
    ),
    "window, not said": (LLAMA, without(sliding_window=16), "sliding_window None like .* got 16"),
    "Mistral's window, not said": (
        MISTRAL | {"sliding_window": None},
        MISTRAL,
        "sliding_window None like the base, got 4096",
    ),
    "types of layers, not said": (
        MISTRAL,
        MISTRAL | {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types .* like the base",
    ),
    "Gemma 3's layers, not said": (
        GEMMA_3,
        GEMMA_3 | {"layer_types": ["full_attention"] * 6},
        r"layer_types \['sliding_attention'.* like the base",
    ),
    "Qwen's layers, not said": (
        without(model_type="qwen2_moe"),
        without(model_type="qwen2_moe", layer_types=["full_attention", "sliding_attention"]),
        "layer_types .* like the base",
    ),
    "heads of a decoder": (
        without(model_type="whisper", decoder_attention_heads=4),
        without(model_type="whisper", decoder_attention_heads=2),
        "decoder_attention_heads 4 like the base, got 2",
    ),
    "gate of T5": (
        without(model_type="t5", feed_forward_proj="gated-gelu"),
        without(model_type="t5", feed_forward_proj="gated-silu"),
        "feed_forward_proj 'gated-gelu' like the base, got 'gated-silu'",
    ),
    "softcap, not said": (
        LLAMA,
        without(final_logit_softcapping=30.0),
        "final_logit_softcapping None like the base, got 30.0",
    ),
    "Gemma 2's softcap, not said": (
        GEMMA_2 | {"attn_logit_softcapping": None},
        GEMMA_2,
        "attn_logit_softcapping None like the base, got 50.0",
    ),
    "epsilon, not said": (LLAMA, without("rms_norm_eps"), "rms_norm_eps 1e-05 like the base, got"),
    "GPT-NeoX's share, not said": (
        without(model_type="gpt_neox"),
        without(model_type="gpt_neox", rotary_pct=1.0),
        "partial_rotary_factor 0.25 like the base, got 1.0",
    ),
    "types of layers": (
        without(layer_types=["full_attention", "sliding_attention"]),
        without(layer_types=["full_attention"] * 2),
        "layer_types .* like the base",
    ),
    "softcap": (
        without(final_logit_softcapping=30.0),
        without(final_logit_softcapping=None),
        "final_logit_softcapping 30.0 like the base, got None",
    ),
    "experts per token": (
        without(num_experts_per_tok=2),
        without(num_experts_per_tok=1),
        "num_experts_per_tok 2 like the base, got 1",
    ),
    "a tower inside": (
        {"model_type": "llava", "text_config": LLAMA},
        {"model_type": "llava", "text_config": without(rope_theta=1e6)},
        r"text_config\.rope_theta 10000\.0 like the base",
    ),
    "no model_type": (
        without("model_type"),
        without("model_type", hidden_act="relu"),
        "hidden_act 'silu' like the base",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_configs_that_compute_something_else_are_refused(name, tmp_path):
    ours, theirs, message = DIFFERENT[name]
    refused(tmp_path, f"expert .*: expected {message}", *pair(tmp_path, ours, theirs))


def test_a_file_of_weights_alone_says_nothing_of_what_is_computed(tmp_path):
    base = folder(tmp_path / "base", weights(), without(sliding_window=16))
    save_file(weights(1), tmp_path / "expert.safetensors")
    found = merge(tmp_path, base, tmp_path / "expert.safetensors")
    np.testing.assert_array_equal(found["a.weight"], weights(1)["a.weight"])


def with_tokens(path, tokens, kind="BPE"):
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = {"vocab": [[t, 0.0] for t in tokens] if kind == "Unigram" else vocabulary}
    (path / "tokenizer.json").write_text(json.dumps({"model": model}), encoding="utf-8")


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
def test_embeddings_of_other_tokens_are_not_merged(kind, tmp_path):
    """Vocabularies of equal size whose rows are other words average to noise."""
    names = ("embed.weight", "b.weight")
    base, expert = (
        folder(tmp_path / name, {n: x[: 6 if n[0] == "e" else 4] for n, x in given.items()})
        for name, given in (("base", weights(0, names)), ("expert", weights(1, names)))
    )
    with_tokens(base, "abcdef", kind)
    with_tokens(expert, "abcdéf", kind)
    refused(tmp_path, "other ones for 1 of 6 ids, first 'é' for 4 in place of 'e'", base, expert)
    merge(tmp_path, base, expert, exclude=("embed",))
    with_tokens(expert, "abcdefg", kind)  # more of them, which the embedding has no rows for
    merge(tmp_path, base, expert, out="more")


def pieces(tokens):
    """A SentencePiece model: messages of a text, a score and a kind."""
    found = b""
    for text in (token.encode() for token in tokens):
        own = b"\x0a" + bytes([len(text)]) + text + b"\x15" + bytes(4) + b"\x18\x01"
        found += b"\x0a" + bytes([len(own)]) + own
    return found + b"\x12\x02\x18\x01"  # what it was trained with


@pytest.mark.parametrize("file", ["vocab.json", "vocab.txt", "tokenizer.model"])
def test_tokens_are_compared_whichever_file_says_them(file, tmp_path):
    """A base with `tokenizer.json` and an expert without one merged to noise, too."""
    names = ("embed.weight",)
    base, expert = (
        folder(tmp_path / name, weights(seed, names), LLAMA)
        for seed, name in enumerate(("base", "expert"))
    )
    with_tokens(base, "abcdef")

    def write(tokens):
        written = {
            "vocab.json": json.dumps({token: n for n, token in enumerate(tokens)}).encode(),
            "vocab.txt": "".join(f"{token}\n" for token in tokens).encode(),
            "tokenizer.model": pieces(tokens),
        }
        (expert / file).write_bytes(written[file])

    write("abcxyz")
    refused(tmp_path, "other ones for 3 of 6 ids, first 'x' for 3 in place of 'd'", base, expert)
    write("abcdef")
    merge(tmp_path, base, expert)
    (base / "tokenizer.json").rename(base / "unread.json")
    (base / "tokenizer.model").write_bytes(pieces("abcxyz"))
    if file == "tokenizer.model":
        refused(tmp_path, "first 'd' for 3 in place of 'x'", base, expert, out="again")


@pytest.mark.parametrize("content", [b"\xff" * 200_000, b"\x0a\xff", b"\x0f", pieces("ab")[:5]])
def test_a_damaged_piece_file_says_nothing_and_ends_at_once(content, tmp_path):
    """A number without an end would be read for hours."""
    for name, held in (("one", content), ("other", pieces("ab"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(held)
    assert shared_tokens(tmp_path / "one", tmp_path / "other", "llama") == []


NAMED = {"id2label": {"0": "negative", "1": "positive"}}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "Negative ", "1": "POSITIVE"}, None),
        ({"0": "LABEL_0", "1": "LABEL_1"}, None),
        ({"0": "positive", "1": "negative"}, "got 'positive' for 0 in place of 'negative'"),
    ],
)
def test_classifiers_of_other_classes_are_not_merged(labels, message, tmp_path):
    """Averaged rows of other classes say neither."""
    names = ("a.weight", "classifier.weight")
    heads = [{n: x[:2] for n, x in weights(seed, names).items()} for seed in range(2)]
    base = folder(tmp_path / "base", heads[0], LLAMA | NAMED)
    expert = folder(tmp_path / "expert", heads[1], LLAMA | {"id2label": labels})
    if message:
        refused(tmp_path, message, base, expert)
        merge(tmp_path, base, expert, exclude=("classifier",))
    else:
        merge(tmp_path, base, expert)


# Quantized checkpoints and integers

QUANTIZED = {
    "gptq": ({"b.qweight": np.ones((2, 4), np.int32), "b.qzeros": np.ones((1, 1), np.int32)}, {}),
    "awq": (
        {"b.qweight": np.ones((2, 4), np.int32), "b.scales": np.ones((1, 4), np.float16)},
        {"quantization_config": {"quant_method": "awq"}},
    ),
    "bitsandbytes": (
        {"b.weight": np.ones((6, 4), np.int8), "b.SCB": np.ones(6, np.float32)},
        {},
    ),
    "bitsandbytes, 4 bits": (
        {"b.weight": np.ones((12, 1), np.uint8), "b.weight.absmax": np.ones(1, np.float32)},
        {},
    ),
    "compressed-tensors": ({"b.weight_packed": np.ones((6, 1), np.int32)}, {}),
    "config alone": ({}, {"quantization_config": {"quant_method": "fp8"}}),
    "of a tower": ({}, {"text_config": {"quantization_config": {"quant_method": "gptq"}}}),
    "old compressed-tensors": ({}, {"compression_config": {"format": "int-quantized"}}),
}


@pytest.mark.parametrize("role", ["base", "expert", "all"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_checkpoints_are_refused(name, role, tmp_path):
    tensors, config = QUANTIZED[name]
    codes = {"a.weight": weights()["a.weight"]} | tensors, {"model_type": "toy"} | config
    plain = weights(), {"model_type": "toy"}
    given = [codes if role in (own, "all") else plain for own in ("base", "expert")]
    paths = [folder(tmp_path / str(i), *content) for i, content in enumerate(given)]
    refused(tmp_path, r"expected floating-point weights.*quantized.*dequantize it first", *paths)


def test_eight_bit_floats_are_refused(tmp_path):
    base = folder(tmp_path / "base", weights())
    narrow = tmp_path / "narrow.safetensors"
    data = np.zeros(24, np.uint8).tobytes()
    header = {"a.weight": {"dtype": "F8_E4M3", "shape": [6, 4], "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    narrow.write_bytes(len(text).to_bytes(8, "little") + text + data)
    with pytest.raises((MergeError, hub.HubError), match=r"narrow\.safetensors.*(F8_E4M3|float8)"):
        merge(tmp_path, base, narrow)


def test_integers_that_differ_are_refused_and_counters_are_the_base_s(tmp_path):
    def given(name, seed, ids, count):
        tensors = weights(seed) | {"table": np.asarray(ids), "batches": np.asarray(count)}
        return folder(tmp_path / name, tensors)

    base, same = given("base", 0, [1, 2, 3], 5), given("same", 1, [1, 2, 3], 9)
    found = merge(tmp_path, base, same)
    np.testing.assert_array_equal(found["batches"], 5)
    other = given("other", 2, [3, 2, 1], 5)
    refused(tmp_path, "table: expected the base's values.*int64.*exclude", base, other, out="x")
    found = merge(tmp_path, base, other, out="y", exclude=("table",))
    np.testing.assert_array_equal(found["table"], [1, 2, 3])


def test_an_integer_tensor_that_an_expert_has_as_floats_is_refused(tmp_path):
    base = folder(tmp_path / "base", weights() | {"table": np.arange(6)})
    expert = folder(tmp_path / "expert", weights(1) | {"table": np.arange(6.0, dtype=np.float32)})
    refused(tmp_path, "base .*table: expected floating-point weights like the exp", base, expert)


# Buffers


def test_masks_of_minus_infinity_are_the_base_s(tmp_path):
    """GPT-NeoX's -1e9 in float16; newer versions don't save it."""
    name = "gpt_neox.layers.0.attention.masked_bias"
    mask = np.asarray(-np.inf, np.float16)
    base = folder(tmp_path / "base", weights() | {name: mask})
    wide = folder(tmp_path / "wide", weights(1) | {name: np.asarray(-1e9, np.float32)})
    none = folder(tmp_path / "none", weights(2))
    for algorithm in ("average", "ties", "pcb"):
        found = merge(tmp_path, base, wide, none, out=algorithm, algorithm=algorithm)
        np.testing.assert_array_equal(found[name], mask)
        assert np.isfinite(found["a.weight"]).all()


def test_a_mask_of_another_name_is_refused_with_the_pattern_that_leaves_it_alone(tmp_path):
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    folders = [folder(tmp_path / str(i), weights(i) | {"look.ahead": mask}) for i in range(2)]
    pattern = r"^look\.ahead$"
    refused(tmp_path, re.escape(r"exclude: ['look\\.ahead$']"), *folders)
    found = merge(tmp_path, *folders, exclude=(pattern,))
    np.testing.assert_array_equal(found["look.ahead"], mask)


def test_rope_frequencies_are_copied_and_must_agree(tmp_path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    frequencies = (10000.0 ** -np.linspace(0, 1, 8)).astype(np.float32)
    half = frequencies.astype(ml_dtypes.bfloat16)
    base = folder(tmp_path / "base", weights() | {name: frequencies})
    same = folder(tmp_path / "same", weights(1) | {name: half})
    none = folder(tmp_path / "none", weights(2))
    found = merge(tmp_path, base, same, none, algorithm="task_arithmetic", coefficient=0.7)
    np.testing.assert_array_equal(found[name], frequencies)
    other = folder(tmp_path / "other", weights(3) | {name: frequencies**1.5})
    refused(tmp_path, "inv_freq: expected the base's RoPE frequencies", base, other, out="x")


# Tied tensors

TIED = ("model.embed_tokens.weight", "lm_head.weight", "other.weight")
HEAD, EMBED = TIED[1], TIED[0]


def tied(path, seed, stored=2):
    tensors = weights(seed, TIED)
    tensors[HEAD] = tensors[EMBED].copy()
    if stored == 1:
        del tensors[HEAD]
    return folder(path, tensors)


@pytest.mark.parametrize("algorithm", ["dare", "dare_ties", "della", "ties", "pcb", "average"])
def test_a_tensor_that_is_stored_twice_is_merged_once(algorithm, tmp_path):
    results = []
    for stored in (1, 2):
        paths = [tied(tmp_path / f"{stored}{seed}", seed, stored) for seed in range(3)]
        results.append(merge(tmp_path, *paths, out=f"out{stored}", algorithm=algorithm))
    once, twice = results
    np.testing.assert_array_equal(twice[HEAD], twice[EMBED])
    for name, value in once.items():
        np.testing.assert_array_equal(twice[name], value)


@pytest.mark.parametrize("stored", [(2, 1, 1), (1, 2, 1), (2, 1, 2)])
def test_a_tied_head_may_be_stored_in_some_checkpoints_only(stored, tmp_path):
    """Which of both is, is the library's doing; the result has what the base has."""
    paths = [tied(tmp_path / f"{seed}", seed, times) for seed, times in enumerate(stored)]
    found = merge(tmp_path, *paths)
    mean = (weights(1, TIED)[EMBED] + weights(2, TIED)[EMBED]) / 2
    for name in TIED[: stored[0]]:
        np.testing.assert_allclose(found[name], mean, rtol=1e-6)
    assert found.keys() == {EMBED, TIED[2], *TIED[: stored[0]]}


def test_a_head_of_its_own_is_not_left_out(tmp_path):
    base, other = tied(tmp_path / "base", 0, 1), folder(tmp_path / "other", weights(1, TIED))
    refused(tmp_path, f"got {HEAD} too", base, other)


def test_tensors_that_are_equal_in_some_checkpoints_only_are_not_tied(tmp_path):
    base, one = tied(tmp_path / "base", 0), folder(tmp_path / "one", weights(1, TIED))
    found = merge(tmp_path, base, one)
    np.testing.assert_array_equal(found[HEAD], weights(1, TIED)[HEAD])


def test_tied_tensors_are_treated_alike(tmp_path):
    paths = [tied(tmp_path / str(seed), seed) for seed in range(2)]
    refused(tmp_path, f"exclude: names {HEAD} but not {EMBED}.*tied", *paths, exclude=("lm_head",))
    rules = (Rule(pattern="lm_head", coefficient=0.5),)
    given = {"algorithm": "task_arithmetic", "rules": rules}
    refused(tmp_path, rf"rules: {EMBED} and {HEAD} are the same.*0\.3 and 0\.5", *paths, **given)
    found = merge(tmp_path, *paths, exclude=("lm_head", "embed_tokens"))
    np.testing.assert_array_equal(found[HEAD], weights(0, TIED)[EMBED])


# Nothing that isn't finite


@pytest.mark.parametrize("values", [(2.5, 1.9), (1.9, 1.8), (2.5, 2.4, 1.9), (1.0, 3.0)])
def test_model_stock_of_numbers_stays_between_them(values, tmp_path):
    """The cosines of numbers are 1 and -1, the pole of two experts."""

    def given(name, value):
        return folder(tmp_path / name, weights() | {"scale": np.asarray(value, np.float32)})

    base = given("base", 2.0)
    experts = [given(str(i), value) for i, value in enumerate(values)]
    found = merge(tmp_path, base, *experts, algorithm="model_stock")["scale"]
    assert min(2.0, *values) - 1e-6 <= found <= max(2.0, *values) + 1e-6


@pytest.mark.parametrize("weights_", [(1.0, -1.0), (0.1, 0.2, -0.3)])
def test_weights_that_add_to_zero_are_refused(weights_, tmp_path):
    folders = [folder(tmp_path / str(i), weights(i)) for i in range(1 + len(weights_))]
    message = r"a\.weight: expected weights whose sum isn't 0.*normalize: false"
    refused(tmp_path, message, *folders, coefficient=weights_)
    rules = (Rule(pattern="^a", coefficient=weights_),)
    refused(tmp_path, message, *folders, rules=rules)
    found = merge(tmp_path, *folders, coefficient=weights_, normalize=False)
    right = sum(w * weights(i + 1)["a.weight"] for i, w in enumerate(weights_))
    np.testing.assert_allclose(found["a.weight"], right, atol=1e-6)


def test_one_weight_of_zero_is_refused_where_it_is_the_divisor(tmp_path):
    names = ("layers.0.weight", "layers.1.weight")
    folders = [folder(tmp_path / str(i), weights(i, names)) for i in range(3)]
    rules = (Rule(pattern=r"layers[.](\d+)", over_depth=(0.0, 1.0)),)
    refused(
        tmp_path, r"layers\.0\.weight: expected weights whose sum isn't 0", *folders, rules=rules
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_merged_weights_that_overflow_are_refused(dtype, tmp_path):
    largest = float(ml_dtypes.finfo(dtype).max)
    given = [np.asarray([[sign * largest * 0.9]], dtype) for sign in (-1, 1)]
    folders = [folder(tmp_path / str(i), {"w": value}) for i, value in enumerate(given)]
    message = rf"w: expected merged weights that fit {np.dtype(dtype)}.*smaller coefficients"
    refused(tmp_path, message, *folders, algorithm="task_arithmetic", coefficient=3)


def test_nan_in_what_is_copied_is_refused(tmp_path):
    broken = weights() | {"head": np.asarray([1, np.nan], np.float32)}
    folders = [folder(tmp_path / "0", broken), folder(tmp_path / "1", weights(1))]
    refused(tmp_path, "head: expected finite weights to copy", *folders, exclude=("head",))


@pytest.mark.slow
def test_weights_of_float64_are_merged_in_float64(tmp_path):
    base = weights() | {"wide": 1 + 1e-12 * np.arange(8.0)}
    moved = [weights(i) | {"wide": base["wide"] + 1e-10 * i} for i in (1, 2)]
    folders = [folder(tmp_path / str(i), tree) for i, tree in enumerate([base, *moved])]
    narrow = [{k: v for k, v in tree.items() if k != "wide"} for tree in (base, *moved)]
    plain = [folder(tmp_path / f"n{i}", tree) for i, tree in enumerate(narrow)]
    for algorithm in ("average", "task_arithmetic", "ties", "dare"):
        options = {} if algorithm != "ties" else {"scope": "leaf"}
        found = merge(tmp_path, *folders, out=algorithm, algorithm=algorithm, **options)
        assert found["wide"].dtype == np.float64
        assert (np.abs(found["wide"] - base["wide"]) < 1e-9).all()
        assert (found["wide"] != base["wide"]).any()
        alone = merge(tmp_path, *plain, out=f"{algorithm}_plain", algorithm=algorithm, **options)
        for name in ("a.weight", "b.weight"):
            np.testing.assert_array_equal(found[name], alone[name])
    for algorithm in ("ties", "pcb", "dare_ties"):  # compare entries of all tensors
        found = merge(tmp_path, *folders, out=f"{algorithm}_global", algorithm=algorithm)
        assert all(np.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("algorithm", ["task_arithmetic", "slerp"])
def test_coefficients_of_float64_weights_are_not_rounded_to_float32(algorithm, tmp_path):
    """0.3 in float32 is 0.3 (1 + 4e-8), which is far more than float64 rounds."""
    base, move = {"w": np.eye(3)}, np.asarray([[0.0, 1, 0], [0, 0, 2], [3, 0, 0]])
    folders = [folder(tmp_path / "0", base), folder(tmp_path / "1", {"w": base["w"] + move})]
    found = merge(tmp_path, *folders, algorithm=algorithm, coefficient=0.3)["w"]
    expected = base["w"] + 0.3 * move
    if algorithm == "slerp":
        expert = base["w"] + move
        angle = np.arccos(np.sum(base["w"] * expert) / (3**0.5 * np.linalg.norm(expert)))
        expected = np.sin(0.7 * angle) * base["w"] + np.sin(0.3 * angle) * expert
        expected = expected / np.sin(angle)
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-15)


# Whole folders


def test_everything_but_weights_is_copied(tmp_path):
    base, expert = (folder(tmp_path / name, weights(i)) for i, name in enumerate(("base", "one")))
    kept = [
        "modeling_x.py",
        "tokenizer.json",
        "qwen.tiktoken",
        "merges.txt",
        "spiece.model",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "generation_config.json",
        "preprocessor_config.json",
        "vocab.bpe",
        "LICENSE",
    ]
    left = [
        "README.md",
        "training_args.bin",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.safetensors.index.json.bak/../flax_model.msgpack",
        "checkpoint-5/optimizer.pt",
        ".git/config",
        "onnx/model.onnx",
    ]
    for name in (*kept, *left):
        path = (base / name.replace("model.safetensors.index.json.bak/../", "")).resolve()
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    merge(tmp_path, base, expert)
    out = tmp_path / "out"
    files = {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()}
    assert files == {*kept, "README.md", "config.json", "model.safetensors"}
    assert (out / "modeling_x.py").read_text() == "modeling_x.py"
    assert not (out / "onnx").exists()


def test_merged_weights_are_found_where_the_base_s_have_another_name(tmp_path):
    base, expert = (folder(tmp_path / name, weights(i)) for i, name in enumerate(("base", "one")))
    (base / "model.safetensors").rename(base / "ema.safetensors")
    config = {"model_type": "toy", "transformers_weights": "ema.safetensors"}
    (base / "config.json").write_text(json.dumps(config))
    found = merge(tmp_path, base, expert, algorithm="task_arithmetic", coefficient=1)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "toy"}
    np.testing.assert_array_equal(found["a.weight"], weights(1)["a.weight"])


def sharded(path, files):
    """files: name -> tensors, with an index that names the last file of every tensor."""
    path.mkdir()
    (path / "config.json").write_text("{}")
    weight_map = {}
    for name, tensors in files.items():
        save_file(tensors, path / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (path / hub.INDEX).write_text(json.dumps(index))
    return path


def names(*numbers):
    return [f"model-{n:05d}-of-{len(numbers):05d}.safetensors" for n in numbers]


@pytest.mark.parametrize("kind", ["one file", "two files", "a tensor in both"])
def test_the_index_says_what_the_merged_files_hold(kind, tmp_path):
    tree = weights()
    if kind == "one file":
        files = {names(1)[0]: tree}
    else:
        first, second = names(1, 2)
        more = tree if kind == "a tensor in both" else {"b.weight": tree["b.weight"]}
        files = {first: {"a.weight": tree["a.weight"]}, second: more}
    base = sharded(tmp_path / "base", files)
    merge(tmp_path, base, folder(tmp_path / "one", weights(1)))
    out = tmp_path / "out"
    index = json.loads((out / hub.INDEX).read_text())
    held = {file: set(load_file(out / file)) for file in set(index["weight_map"].values())}
    assert {name for own in held.values() for name in own} == tree.keys()
    for name, file in index["weight_map"].items():
        assert name in held[file]
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tree.values())
    assert {f.name for f in out.glob("*.safetensors")} == held.keys()


# Modules behind the transformer


def with_dense(path, seed, layer):
    """A sentence transformer: pooling without weights, and a dense layer."""
    folder(path, weights(seed))
    listed = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]
    (path / "modules.json").write_text(json.dumps(listed))
    for name in ("1_Pooling", "2_Dense", "onnx"):
        (path / name).mkdir()
        (path / name / "config.json").write_text("{}")
    for name in ("2_Dense", "onnx"):
        save_file(weights(layer, ("linear.weight",)), path / name / "model.safetensors")
    return path


def test_weights_of_modules_behind_the_transformer_are_the_base_s(tmp_path):
    """Without them the merged folder could not be opened."""
    paths = [with_dense(tmp_path / f"{seed}", seed, 7) for seed in range(3)]
    merge(tmp_path, *paths)
    dense = load_file(tmp_path / "out" / "2_Dense" / "model.safetensors")
    np.testing.assert_array_equal(
        dense["linear.weight"], weights(7, ("linear.weight",)).popitem()[1]
    )
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()
    assert not (tmp_path / "out" / "onnx" / "model.safetensors").exists()  # no module


def test_experts_with_other_modules_are_refused(tmp_path):
    paths = [with_dense(tmp_path / f"{seed}", seed, seed) for seed in range(2)]
    refused(tmp_path, "2_Dense/model.safetensors: expected the base's weights", *paths)

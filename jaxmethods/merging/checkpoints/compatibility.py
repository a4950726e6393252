"""Whether the tensors of checkpoints mean the same: only then may they be averaged.

Tensors of equal shapes may still belong to different functions (another RoPE base, another
activation), be codes instead of numbers (quantized weights), or be no weights at all (buffers).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxmethods.errors import UserError
from jaxmethods.merging.checkpoints.tokens import shared_tokens
from jaxmethods.models.hub.config import ACTIVATIONS
from jaxmethods.models.hub.folders import Folder, Stored

SAME_MEANING = (
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"),
    ("decoder_attention_heads",),
    ("feed_forward_proj",),
    ("relative_attention_max_distance",),
    ("window_size",),
    ("attention_types",),
    ("attention_chunk_size",),
    ("conv_stride",),
    ("do_stable_layer_norm",),
    ("relative_attention",),
    ("position_biased_input",),
    ("hidden_activation", "hidden_act", "activation_function", "hidden_activations"),
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    ("head_dim", "kv_channels"),
    ("patch_size",),
    ("position_embedding_type",),
    ("alibi",),
    ("use_parallel_residual", "parallel_attn"),
    ("apply_residual_connection_post_layernorm",),
    ("do_layer_norm_before",),
    ("scale_attn_weights",),
    ("scale_attn_by_inverse_layer_idx",),
    ("attention_multiplier", "attention_scale"),
    ("embedding_multiplier", "scale_emb", "scale_embedding"),
    ("residual_multiplier", "scale_depth"),
    ("logits_scaling", "logit_scale"),
    ("tie_word_embeddings",),
    ("is_decoder",),
    ("use_qk_norm", "qk_layernorm"),
    ("no_rope_layers",),
    ("rope_interleave", "rope_interleaved", "rotary_interleaved"),
    ("num_experts_per_tok", "num_experts_per_token", "moe_topk"),
    ("norm_topk_prob",),
    ("routed_scaling_factor",),
    ("scoring_func",),
    ("topk_method",),
    ("topk_group",),
    ("n_group",),
)
"""Fields of `config.json` that change what tensors of the same shapes compute; names of one field
in different families stand together. Where one config has no such field, nothing is known."""
OF_ANY_FAMILY = re.compile(
    r"(^|_)(act|afn|act_fn|activation|activation_fn|activation_function)$"
    r"|(^|_)(multipliers?|heads)$|(^|_)(?<!adam_)eps(ilon)?$|_(alpha|beta)_factor$"
    r"|^swiglu_|^time_step_(min|max|limit)$|^num_hidden_(layers|groups)$"
    r"|^(is_causal|use_bidirectional_attention)$"
    r"|^(attention_window(_size)?|keep_window_size|local_attention|local_radius)$"
    r"|^(downsample_in_bottleneck|moe_k|rescale_embeddings|rotary_dim|rotary_value|use_mem_rope)$"
)
"""Names of such fields of any family, by the kind of thing that they say: activations, scales,
heads, small numbers in norms, layers that share their weights. Each of them changed the outputs of
a model of transformers 5.24 with the same tensors, and of nothing that is above."""
NULL_IS_A_VALUE = (
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logits_soft_cap",
    "query_pre_attn_scalar",
    "clip_qkv",
)
"""Fields that are switched off by null."""
LLAMA_LIKE = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
NO_WINDOW_KINDS = ("qwen2", "qwen3", "qwen2_moe", "smollm3")
WINDOW, NO_WINDOW = {"sliding_window": 4096}, {"use_sliding_window": False}
GEMMA_2 = {"query_pre_attn_scalar": 256} | WINDOW
SOFT_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE | WINDOW,
    **dict.fromkeys(("qwen2", "qwen3"), LLAMA_LIKE | NO_WINDOW),
    **dict.fromkeys(("qwen2_moe", "qwen2_vl", "qwen2_5_vl", "qwen3_moe", "smollm3"), NO_WINDOW),
    "gpt_neox": {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
    },
    "opt": {"activation_function": "relu", "do_layer_norm_before": True},
    "codegen": {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
    **dict.fromkeys(("gemma2", "t5gemma"), GEMMA_2 | SOFT_CAPS),
    **dict.fromkeys(("gemma3", "gemma3_text", "t5gemma2", "vaultgemma"), GEMMA_2),
    "recurrent_gemma": {"logits_soft_cap": 30.0},
    **dict.fromkeys(("cohere2", "exaone4", "ministral", "olmo3"), WINDOW),
    "gpt_oss": {"sliding_window": 128},
}
"""By `model_type`, what stands for a field that `config.json` leaves out (transformers 5.24), where
that is more than nothing."""
PERIODS = {
    **dict.fromkeys(("gemma2", "vaultgemma", "gpt_oss"), 2),
    **dict.fromkeys(("cohere2", "exaone4", "olmo3"), 4),
    "gemma3_text": 6,
}
"""Families of whose layers every n-th sees everything and the others a window (transformers 5.24),
where `config.json` says neither `layer_types` nor another n."""
ROPE_BASES = ("rope_theta", "rotary_emb_base", "rotary_base", "rope_base")
ROPE_FIELDS = (*ROPE_BASES, "rope_scaling", "rope_parameters")
OTHER_ROPE_BASES = {
    "mixtral",
    "cohere",
    "cohere2",
    "gemma3",
    "gemma3_text",
    "gpt_oss",
    "llama4",
} | {"smollm3", "ernie4_5", "lfm2"}
"""Families whose RoPE base isn't 10000 where `config.json` doesn't say it."""
ROPE_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "low_freq_factor": 1, "high_freq_factor": 4}
ROPE_NOTES = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "mrope_section",
    "finetuned",
}
"""Entries of a RoPE scaling that are compared under their own names, or are no settings of it."""

BUFFERS = re.compile(
    r"(^|[._])(inv_freq|original_inv_freq|cos_cached|sin_cached|position_ids|token_type_ids)$"
    r"|(^|\.)(rope|rotary_emb|rotary_pos_emb)\.freqs$"
    r"|(^|[._])(masked_bias|causal_mask|attn_mask)$"
)
"""Tensors that checkpoints hold beside the parameters: constants and masks (which may hold -inf).
Versions of a library differ in which of them they save."""
FREQUENCIES = re.compile(r"inv_freq$|\.freqs$")
CODES = re.compile(
    r"\.(qweight|qzeros|weight_packed|SCB|absmax|nested_absmax|quant_map|nested_quant_map)$"
    r"|\.quant_state\."
)
"""Names that only quantized checkpoints have (GPTQ, AWQ, bitsandbytes, compressed-tensors)."""
CLASSIFIERS = re.compile(r"(^|[._])(classifier|classification_head|score|head)([._]|$)")
"""Names of maps to classes."""
UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls a class without a name."""
RENAMED = 0.01
"""Share of the ids that may be other tokens in an expert."""
WHAT_TO_DO = "merge the checkpoints that it was made from, or dequantize it first"


class MergeError(UserError):
    """Checkpoints that cannot be merged; the message is one line."""


def is_buffer(name: str, stored: Stored) -> bool:
    """Whether a tensor is no parameter, so that the base's is kept and experts may lack it."""
    if BUFFERS.search(name):
        return True
    # GPT-2's and GPT-NeoX's causal mask is called like a bias: [1, 1, n, n].
    is_mask = len(stored.shape) >= 3 and stored.shape[-1] == stored.shape[-2]
    return is_mask and bool(re.search(r"(attn|attention)\.bias$", name))


def is_float(dtype: np.dtype) -> bool:
    """Whether numbers of a type can be merged as they are: 16 bits or more."""
    return _is_floating(dtype) and dtype.itemsize > 1


def check_not_quantized(folder: Folder, role: str) -> None:
    """Raises `MergeError` where tensors are codes, whose averages mean nothing."""
    for config in _with_nested(folder.config):
        for field in ("quantization_config", "compression_config"):
            found = config.get(field)
            if not found:
                continue
            method = found.get("quant_method") if isinstance(found, Mapping) else None
            raise MergeError(
                f"{role} {folder.path}: expected floating-point weights, got {field} "
                f"({method or 'no quant_method'}) in config.json (quantized checkpoints are not "
                f"merged): {WHAT_TO_DO}"
            )
    for name, stored in sorted(folder.tensors.items()):
        if is_buffer(name, stored):
            continue
        is_code = stored.dtype.kind in "iu" and len(stored.shape) > 1 and name.endswith("weight")
        is_small = _is_floating(stored.dtype) and not is_float(stored.dtype)
        if CODES.search(name) or is_code or is_small:
            raise MergeError(
                f"{role} {folder.path}: {name}: expected floating-point weights, got "
                f"{stored.dtype} (quantized checkpoints are not merged): {WHAT_TO_DO}"
            )


def check_configs(base: Folder, expert: Folder) -> None:
    """Raises `MergeError` naming the first field in which the configs compute something else."""
    ours, theirs = base.config, expert.config
    if not ours or not theirs:  # a file of weights alone
        return
    kinds = [config.get("model_type") for config in (ours, theirs)]
    if None not in kinds and kinds[0] != kinds[1]:
        short, long = sorted(map(str, kinds), key=len)  # clip, clip_vision_model: a tower of it
        if not long.startswith(f"{short}_"):
            raise MergeError(
                f"expert {expert.path}: expected model_type {kinds[0]!r} like the base, "
                f"got {kinds[1]!r}"
            )
        tower = long.removeprefix(f"{short}_").removesuffix("_model") + "_config"
        ours, theirs = ours.get(tower, ours), theirs.get(tower, theirs)
    for name, one, other in differences(ours, theirs):
        raise MergeError(
            f"expert {expert.path}: expected {name} {one!r} like the base, got {other!r}: the "
            "models compute different functions of their weights (if they don't, make their "
            "config.json agree)"
        )


def check_tokenizers(base: Folder, expert: Folder, rows: int) -> None:
    """Raises `MergeError` where tensors of `rows` rows have those of other tokens.

    A few tokens may differ: fine-tuning gives names to reserved ones.
    """
    shared = shared_tokens(base.path, expert.path, base.config.get("model_type"))
    other = [(number, one, two) for number, one, two in shared if one != two]
    if len(other) > RENAMED * len(shared) and shared[-1][0] < rows:
        number, ours, theirs = other[0]
        raise MergeError(
            f"expert {expert.path}: expected the base's tokens, got other ones for {len(other)} of "
            f"{len(shared)} ids, first {theirs!r} for {number} in place of {ours!r}; "
            "exclude the embedding and the head, or merge models of one tokenizer"
        )


def check_labels(base: Folder, expert: Folder, merged: Mapping[str, Stored]) -> None:
    """Raises `MergeError` where classifiers would be merged whose rows are other classes.

    Names that nobody gave (LABEL_0) say nothing.
    """
    ours, theirs = _labels(base.config), _labels(expert.config)
    if len(ours) != len(theirs) or not any(
        CLASSIFIERS.search(name) and stored.shape[:1] == (len(ours),)
        for name, stored in merged.items()
    ):
        return
    for number in sorted(ours.keys() & theirs.keys()):
        one, other = ours[number], theirs[number]
        unsaid = UNNAMED.fullmatch(one) or UNNAMED.fullmatch(other)
        if not unsaid and one.strip().casefold() != other.strip().casefold():
            raise MergeError(
                f"expert {expert.path}: expected the base's classes, got {other!r} for {number} in "
                f"place of {one!r} (id2label); exclude the classifier, or merge models of the same "
                "classes in the same order"
            )


def _labels(config: Mapping) -> dict[str, str]:
    """Number -> name of a config's classes."""
    found = config.get("id2label")
    if not isinstance(found, Mapping):
        return {}
    return {str(number): str(name) for number, name in found.items()}


def differences(ours: Mapping, theirs: Mapping) -> Iterator[tuple[str, Any, Any]]:
    """(field, ours, theirs) of what is computed differently, also in nested configs."""
    kind = ours.get("model_type", theirs.get("model_type"))
    ours, theirs = (_with_defaults(config, kind) for config in (ours, theirs))
    for aliases in SAME_MEANING:
        one, other = _first(ours, aliases), _first(theirs, aliases)
        if one and other and _normal(one[1]) != _normal(other[1]):
            yield one[0], one[1], other[1]
    shared = [name for name in ours if name in theirs and isinstance(name, str)]
    for name in filter(OF_ANY_FAMILY.search, shared):
        one, other = ours[name], theirs[name]
        if None not in (one, other) and _normal(one) != _normal(other):
            yield name, one, other
    for name in NULL_IS_A_VALUE:
        if ours.get(name) != theirs.get(name):
            yield name, ours.get(name), theirs.get(name)
    for settings in (_key_value_heads, _windows, _layer_types, _rope):
        one, other = settings(ours), settings(theirs)
        for name in one.keys() & other.keys():
            if one[name] != other[name]:
                yield name, one[name], other[name]
    for name, value in ours.items():
        nested = isinstance(value, dict) and isinstance(theirs.get(name), dict)
        if nested and name not in ROPE_FIELDS:
            for inner, one, other in differences(value, theirs[name]):
                yield f"{name}.{inner}", one, other


def same_frequencies(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two stored RoPE frequencies are those of one base, up to their types' rounding."""
    if ours.shape != theirs.shape:
        return False
    coarse = max(1e-5, *(float(2 * _epsilon(x.dtype)) for x in (ours, theirs)))
    return np.allclose(ours.astype(np.float64), theirs.astype(np.float64), rtol=coarse, atol=1e-7)


def _epsilon(dtype: np.dtype) -> float:
    return {8: 2.0**-52, 4: 2.0**-23}.get(dtype.itemsize, 2.0**-8)  # float16 or bfloat16


def _is_floating(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def _with_nested(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _with_nested(value)


def _first(config: Mapping[str, Any], aliases: tuple[str, ...]) -> tuple[str, Any] | None:
    found = ((name, config[name]) for name in aliases if config.get(name) is not None)
    return next(found, None)


def _normal(value: Any) -> Any:
    if isinstance(value, str):
        return {**ACTIVATIONS, "swish": "silu"}.get(value, value)
    return value


def _key_value_heads(config: Mapping) -> dict[str, Any]:
    heads = _first(config, SAME_MEANING[0])
    names = ("num_key_value_heads", "n_head_kv", "num_kv_heads")
    found = _first(config, names) or heads
    return {} if heads is None or found is None else {names[0]: found[1]}


def _with_defaults(config: Mapping[str, Any], kind: Any) -> Mapping[str, Any]:
    """The config with the family's defaults for fields that it leaves out; null is a value."""
    defaults = DEFAULTS.get(kind, {}) if isinstance(kind, str) else {}
    return {**defaults, **config, "model_type": kind}


def _windows(config: Mapping) -> dict[str, Any]:
    used = config.get("use_sliding_window", True)
    window = config.get("sliding_window") if used else None
    found = {"sliding_window": window}
    if window is not None and config.get("max_window_layers") is not None:
        found["max_window_layers"] = config["max_window_layers"]
    return found


def _layer_types(config: Mapping) -> dict[str, Any]:
    types, layers = config.get("layer_types"), config.get("num_hidden_layers")
    if not isinstance(types, list):
        return _same_layers(config, layers)
    return {"layer_types": types[:layers] if isinstance(layers, int) else types}


def _same_layers(config: Mapping, layers: Any) -> dict[str, Any]:
    """The layers of families that `config.json` has no `layer_types` of, where they are known."""
    window, kind = _windows(config)["sliding_window"], config.get("model_type")
    if not isinstance(layers, int) or not isinstance(kind, str):
        return {}
    given = _first(config, ("sliding_window_pattern", "_sliding_window_pattern"))
    period = PERIODS.get(kind) if given is None else given[1]
    if kind in PERIODS and isinstance(period, int) and period > 0:
        sliding = [(number + 1) % period != 0 for number in range(layers)]
    elif kind in ("llama", "mistral", "ministral"):
        sliding = [window is not None and kind != "llama"] * layers
    elif kind in NO_WINDOW_KINDS and window is None:  # else, from `max_window_layers` on
        sliding = [False] * layers
    else:
        return {}
    names = {True: "sliding_attention", False: "full_attention"}
    return {"layer_types": [names[slides] for slides in sliding]}


def _rope(config: Mapping) -> dict[str, Any]:
    """The RoPE of a config, whichever version of transformers wrote it."""
    nested = config.get("rope_parameters")
    nested = nested if isinstance(nested, dict) else {}
    local = config.get("rope_local_base_freq")
    if isinstance(nested.get("full_attention"), dict):  # one for each type of layer
        local = (nested.get("sliding_attention") or {}).get("rope_theta", local)
        nested = nested["full_attention"]
    scaling = config.get("rope_scaling")  # where both are given, transformers takes this one
    scaling = scaling if isinstance(scaling, dict) and scaling else nested
    base = _first(scaling, ("rope_theta",)) or _first(config, ROPE_BASES)
    part = _first(scaling, ("partial_rotary_factor",))
    part = part or _first(config, ("partial_rotary_factor", "rotary_pct"))
    found: dict[str, Any] = {}
    if base is not None:
        found["rope_theta"] = base[1]
    elif config.get("model_type") not in OTHER_ROPE_BASES:
        found["rope_theta"] = 10_000
    if local is not None:
        found["rope_local_base_freq"] = local
    if part is not None:
        found["partial_rotary_factor"] = part[1]
    return found | {"rope_scaling": _scaling(config, scaling)}


def _scaling(config: Mapping, scaling: Mapping) -> dict[str, Any] | None:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    kind = {"su": "longrope", "mrope": "default"}.get(kind, kind)
    factor = scaling.get("factor")
    if kind == "default" or (kind == "linear" and factor in (None, 1)):
        return None
    given = {k: v for k, v in scaling.items() if v is not None and k not in ROPE_NOTES}
    given = {k: v for k, v in given.items() if ROPE_DEFAULTS.get(k) != v}
    if kind != "linear":
        fallback = _first(config, ("original_max_position_embeddings", "max_position_embeddings"))
        if fallback is not None:
            given.setdefault("original_max_position_embeddings", fallback[1])
    return {"rope_type": kind, **given}

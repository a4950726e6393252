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
from jaxmethods.models.hub.config import ACTIVATIONS
from jaxmethods.models.hub.folders import Folder, Stored

SAME_MEANING = (
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"),
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
NULL_IS_A_VALUE = (
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "clip_qkv",
)
"""Fields that are switched off by null."""
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


def differences(ours: Mapping, theirs: Mapping) -> Iterator[tuple[str, Any, Any]]:
    """(field, ours, theirs) of what is computed differently, also in nested configs."""
    for aliases in SAME_MEANING:
        one, other = _first(ours, aliases), _first(theirs, aliases)
        if one and other and _normal(one[1]) != _normal(other[1]):
            yield one[0], one[1], other[1]
    for name in NULL_IS_A_VALUE:
        if name in ours and name in theirs and ours[name] != theirs[name]:
            yield name, ours[name], theirs[name]
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


def _windows(config: Mapping) -> dict[str, Any]:
    if "sliding_window" not in config and "use_sliding_window" not in config:
        return {}
    used = config.get("use_sliding_window", True)
    window = config.get("sliding_window") if used else None
    found = {"sliding_window": window}
    if window is not None and config.get("max_window_layers") is not None:
        found["max_window_layers"] = config["max_window_layers"]
    return found


def _layer_types(config: Mapping) -> dict[str, Any]:
    types, layers = config.get("layer_types"), config.get("num_hidden_layers")
    if not isinstance(types, list):
        return {}
    return {"layer_types": types[:layers] if isinstance(layers, int) else types}


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

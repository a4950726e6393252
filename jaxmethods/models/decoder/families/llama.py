"""Llama, and what descends from it: Mistral, Qwen2 and Qwen3."""

from __future__ import annotations

from typing import Any

from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.families.family import (
    activation_name,
    head_dim_of,
    head_rows,
    linear_rows,
    require_full_layers,
    write_rope,
)
from jaxmethods.models.hub.config import Fields
from jaxmethods.models.hub.tensors import Tensor, whole


def read_llama(
    fields: Fields,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    max_positions: int = 2048,
    biases: tuple[str, ...] = ("attention_bias", "mlp_bias"),
) -> dict[str, Any]:
    """Llama and what descends from it.

    Args:
        fields: of `config.json`.
        kv_heads, head_dim, max_positions: the family's defaults.
        biases: which of the two settings the family has; it ignores others.

    Returns:
        Fields of `DecoderConfig`.
    """
    heads, width = fields.size("num_attention_heads"), fields.size("hidden_size")
    if head_dim is None and fields.get("head_dim") is None:
        head_dim = head_dim_of(fields, heads, width)
    head_dim = fields.size("head_dim", head_dim)
    # A missing field means the default of Hugging Face's class, a null one as many as heads.
    kv_heads = heads if "num_key_value_heads" in fields.values or kv_heads is None else kv_heads
    max_positions = fields.size("max_position_embeddings", max_positions)
    _require_whole_rotation(fields)
    attention_bias, mlp_bias = (
        name in biases and fields.flag(name, False) for name in ("attention_bias", "mlp_bias")
    )
    return {
        "width": width,
        "mlp_width": fields.size("intermediate_size"),
        "layers": fields.size("num_hidden_layers"),
        "heads": heads,
        "kv_heads": fields.size("num_key_value_heads", kv_heads),
        "head_dim": head_dim,
        "rotary_dim": head_dim,
        "max_positions": max_positions,
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "activation": fields.activation("hidden_act", "silu"),
        "qkv_bias": attention_bias,
        "out_bias": attention_bias,
        "mlp_bias": mlp_bias,
        "tied": fields.flag("tie_word_embeddings", False),
        **fields.rope(max_positions),
    }


def read_mistral(fields: Fields) -> dict[str, Any]:
    # A missing field means the default of Hugging Face's class, a null one no window.
    """The same of Mistral, with its sliding window."""
    window = fields.values.get("sliding_window", 4096)
    # With this field, `AutoModel` makes a Ministral of a Mistral: each layer has its own kind.
    kinds = set(_layer_types(fields))
    if len(kinds) > 1 or (kinds == {"sliding_attention"} and window is None):
        got = fields.values["layer_types"]
        raise fields.error("layer_types", "one kind for all layers, with a sliding_window", got)
    return read_llama(fields, kv_heads=8, max_positions=131_072, biases=()) | {
        "sliding_window": None if kinds == {"full_attention"} else window
    }


def read_qwen2(fields: Fields) -> dict[str, Any]:
    """The same of Qwen2, whose queries, keys and values have biases."""
    _require_full_attention(fields)
    values = read_llama(fields, kv_heads=32, max_positions=32_768, biases=())
    return values | {"qkv_bias": True}


def read_qwen3(fields: Fields) -> dict[str, Any]:
    """The same of Qwen3, which normalizes queries and keys."""
    _require_full_attention(fields)
    values = read_llama(
        fields, kv_heads=32, head_dim=128, max_positions=32_768, biases=("attention_bias",)
    )
    return values | {"qk_norm": True}


def _layer_types(fields: Fields) -> list[str]:
    """What `layer_types` says of every layer; nothing if it is missing."""
    kinds = fields.get("layer_types", [])
    legacy = {"attention": "full_attention"}
    known = {"full_attention", "sliding_attention", *legacy}
    if not isinstance(kinds, list) or any(kind not in known for kind in map(str, kinds)):
        raise fields.error("layer_types", "'full_attention' or 'sliding_attention'", kinds)
    if kinds and len(kinds) != fields.size("num_hidden_layers"):
        raise fields.error("layer_types", f"{fields.size('num_hidden_layers')} layers", kinds)
    return [legacy.get(str(kind), str(kind)) for kind in kinds]


def _require_full_attention(fields: Fields) -> None:
    fields.require("use_sliding_window", False, False)
    require_full_layers(fields)
    _layer_types(fields)


def _require_whole_rotation(fields: Fields) -> None:
    """Families that turn whole heads ignore a share, or fail with it."""
    share = fields.rope_parameters().get("partial_rotary_factor")
    share = fields.get("partial_rotary_factor", 1.0) if share is None else share
    if share != 1:
        raise fields.error("partial_rotary_factor", "1.0", share)


def write_llama(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of all of these."""
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": activation_name(config),
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "sliding_window": config.sliding_window,
        **write_rope(config),
    }


def table_llama(config: DecoderConfig) -> list[Tensor]:
    """The tensors of a checkpoint of all of these."""
    width, inner, n = config.width, config.mlp_width, config.layers
    heads, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    block, attention = "model.layers.{}.", "model.layers.{}.self_attn."
    table = [whole("model.embed_tokens.weight", "embed/tokens", (config.vocab_size, width))]
    for ours, theirs, size in (("query", "q", heads), ("key", "k", kv), ("value", "v", kv)):
        table += linear_rows(
            f"{attention}{theirs}_proj", f"layers/attention/{ours}", width, size, n, config.qkv_bias
        )
    table += linear_rows(
        f"{attention}o_proj", "layers/attention/out", heads, width, n, config.out_bias
    )
    for name in ("gate", "up"):
        table += linear_rows(
            f"{block}mlp.{name}_proj", f"layers/mlp/{name}", width, inner, n, config.mlp_bias
        )
    table += linear_rows(
        f"{block}mlp.down_proj", "layers/mlp/down", inner, width, n, config.mlp_bias
    )
    if config.qk_norm:
        for name in ("query", "key"):
            theirs = f"{attention}{name[0]}_norm.weight"
            table.append(
                whole(theirs, f"layers/attention/{name}_norm/scale", (config.head_dim,), n)
            )
    table += [
        whole(f"{block}input_layernorm.weight", "layers/attention_norm/scale", (width,), n),
        whole(f"{block}post_attention_layernorm.weight", "layers/mlp_norm/scale", (width,), n),
        whole("model.norm.weight", "final_norm/scale", (width,)),
    ]
    return table + head_rows(config)

"""Decoder families: what their `config.json` says and which tensors their checkpoints hold.

A family is a reader of its config, a writer of it, and a table of its tensors. A setting that we
don't implement is an error that names the field, never silently another model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.hub.config import ACTIVATIONS, Fields
from jaxmethods.models.hub.folders import Tensor, linear, whole


class Family(NamedTuple):
    """One `model_type`."""

    architecture: str
    """Hugging Face's class."""
    read: Callable[[Fields], dict[str, Any]]
    """`config.json` -> fields of `DecoderConfig`."""
    write: Callable[[DecoderConfig], dict[str, Any]]
    """The inverse."""
    table: Callable[[DecoderConfig], list[Tensor]]


def _read_llama(
    fields: Fields,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    max_positions: int = 2048,
    biases: tuple[str, ...] = ("attention_bias", "mlp_bias"),
) -> dict[str, Any]:
    """Llama and what descends from it.

    Args:
        kv_heads, head_dim, max_positions: the family's defaults.
        biases: which of the two settings the family has; it ignores others.
    """
    heads, width = fields.size("num_attention_heads"), fields.size("hidden_size")
    if head_dim is None and fields.get("head_dim") is None:
        head_dim = _head_dim(fields, heads, width)
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


def _read_mistral(fields: Fields) -> dict[str, Any]:
    # A missing field means the default of Hugging Face's class, a null one no window.
    window = fields.values.get("sliding_window", 4096)
    # With this field, `AutoModel` makes a Ministral of a Mistral: each layer has its own kind.
    kinds = set(_layer_types(fields))
    if len(kinds) > 1 or (kinds == {"sliding_attention"} and window is None):
        got = fields.values["layer_types"]
        raise fields.error("layer_types", "one kind for all layers, with a sliding_window", got)
    return _read_llama(fields, kv_heads=8, max_positions=131_072, biases=()) | {
        "sliding_window": None if kinds == {"full_attention"} else window
    }


def _read_qwen2(fields: Fields) -> dict[str, Any]:
    _require_full_attention(fields)
    values = _read_llama(fields, kv_heads=32, max_positions=32_768, biases=())
    return values | {"qkv_bias": True}


def _read_qwen3(fields: Fields) -> dict[str, Any]:
    _require_full_attention(fields)
    values = _read_llama(
        fields, kv_heads=32, head_dim=128, max_positions=32_768, biases=("attention_bias",)
    )
    return values | {"qk_norm": True}


def _head_dim(fields: Fields, heads: int, width: int) -> int:
    """The share of each head in the width."""
    name = "n_head" if "n_head" in fields.values else "num_attention_heads"
    if width % heads:
        raise fields.error(name, f"a divisor of the width {width}", heads)
    return width // heads


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
    kinds = fields.get("layer_types", [])
    if not isinstance(kinds, list) or set(map(str, kinds)) - {"full_attention", "attention"}:
        raise fields.error("layer_types", "'full_attention' only", kinds)
    _layer_types(fields)


def _require_whole_rotation(fields: Fields) -> None:
    """Families that turn whole heads ignore a share, or fail with it."""
    share = fields.rope_parameters().get("partial_rotary_factor")
    share = fields.get("partial_rotary_factor", 1.0) if share is None else share
    if share != 1:
        raise fields.error("partial_rotary_factor", "1.0", share)


def _write_llama(config: DecoderConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": _activation(config),
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "sliding_window": config.sliding_window,
        **_write_rope(config),
    }


def _write_rope(config: DecoderConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_theta": config.rope_theta, "rope_scaling": None}
    settings: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        settings |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return {"rope_theta": config.rope_theta, "rope_scaling": settings}


def _table_llama(config: DecoderConfig) -> list[Tensor]:
    width, inner, n = config.width, config.mlp_width, config.layers
    heads, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    block, attention = "model.layers.{}.", "model.layers.{}.self_attn."
    table = [whole("model.embed_tokens.weight", "embed/tokens", (config.vocab_size, width))]
    for ours, theirs, size in (("query", "q", heads), ("key", "k", kv), ("value", "v", kv)):
        table += _linear(
            f"{attention}{theirs}_proj", f"layers/attention/{ours}", width, size, n, config.qkv_bias
        )
    table += _linear(f"{attention}o_proj", "layers/attention/out", heads, width, n, config.out_bias)
    for name in ("gate", "up"):
        table += _linear(
            f"{block}mlp.{name}_proj", f"layers/mlp/{name}", width, inner, n, config.mlp_bias
        )
    table += _linear(f"{block}mlp.down_proj", "layers/mlp/down", inner, width, n, config.mlp_bias)
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
    return table + _head_table(config)


def _read_neox(fields: Fields) -> dict[str, Any]:
    heads, width = fields.size("num_attention_heads"), fields.size("hidden_size")
    head_dim = _head_dim(fields, heads, width)
    fields.require("head_dim", head_dim, head_dim)
    max_positions = fields.size("max_position_embeddings", 2048)
    share = fields.rope_parameters().get("partial_rotary_factor", fields.get("rotary_pct", 0.25))
    turned = head_dim * share if isinstance(share, int | float) else -1
    if not 0 <= turned <= head_dim or int(turned) % 2:
        raise fields.error("rotary_pct", f"an even part of the {head_dim} of a head", share)
    bias = fields.flag("attention_bias", True)
    parallel = fields.flag("use_parallel_residual", True)
    return {
        "width": width,
        "mlp_width": fields.size("intermediate_size"),
        "layers": fields.size("num_hidden_layers"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": head_dim,
        "rotary_dim": int(turned),
        "max_positions": max_positions,
        "norm": "layer",
        "norm_eps": fields.number("layer_norm_eps", 1e-5),
        "activation": fields.activation("hidden_act", "gelu"),
        "gated": False,
        "residual": "parallel" if parallel else "sequential",
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": True,
        "tied": fields.flag("tie_word_embeddings", False),
        **fields.rope(max_positions, "rotary_emb_base"),
    }


def _write_neox(config: DecoderConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": _activation(config),
        "use_parallel_residual": config.residual == "parallel",
        "attention_bias": config.qkv_bias,
        "rotary_pct": _share(config.rotary_dim, config.head_dim),
        "rotary_emb_base": config.rope_theta,
        **_write_rope(config),
    }


def _share(part: int, whole: int) -> float:
    """part / whole, rounded such that int(whole * share) is the part."""
    share = part / whole
    return share if int(whole * share) == part else math.nextafter(share, math.inf)


def _table_neox(config: DecoderConfig) -> list[Tensor]:
    width, inner, n, head_dim = config.width, config.mlp_width, config.layers, config.head_dim
    block = "gpt_neox.layers.{}."
    fused = f"{block}attention.query_key_value"
    parts = ("query", "key", "value")

    def per_head(tensor: np.ndarray) -> np.ndarray:
        # [H, 3, d, ...]
        return tensor.reshape(config.heads, len(parts), head_dim, *tensor.shape[1:])

    def split(tensor: np.ndarray) -> list[np.ndarray]:
        return [per_head(tensor)[:, i].reshape(width, *tensor.shape[1:]).T for i in range(3)]

    def join(leaves: Any) -> np.ndarray:
        # [H, d, ...] each
        heads = [leaf.T.reshape(config.heads, head_dim, *leaf.T.shape[1:]) for leaf in leaves]
        return np.stack(heads, 1).reshape(3 * width, *heads[0].shape[2:])  # [H 3 d, ...]

    table = [
        whole("gpt_neox.embed_in.weight", "embed/tokens", (config.vocab_size, width)),
        _fused(f"{fused}.weight", "kernel", (3 * width, width), n, split, join),
    ]
    if config.qkv_bias:
        table.append(_fused(f"{fused}.bias", "bias", (3 * width,), n, split, join))
    table += _linear(
        f"{block}attention.dense", "layers/attention/out", width, width, n, config.out_bias
    )
    table += _linear(f"{block}mlp.dense_h_to_4h", "layers/mlp/up", width, inner, n, True)
    table += _linear(f"{block}mlp.dense_4h_to_h", "layers/mlp/down", inner, width, n, True)
    table += _layer_norm(f"{block}input_layernorm", "layers/attention_norm", width, n)
    table += _layer_norm(f"{block}post_attention_layernorm", "layers/mlp_norm", width, n)
    table += _layer_norm("gpt_neox.final_layer_norm", "final_norm", width)
    return table + _head_table(config)


CODEGEN_NAMES = {
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""Other names of CodeGen's fields; where both are given, these are taken."""


def _read_codegen(fields: Fields) -> dict[str, Any]:
    renamed = {n: fields.values[name] for name, n in CODEGEN_NAMES.items() if name in fields.values}
    fields = Fields({**fields.values, **renamed}, fields.source)
    heads, width = fields.size("n_head"), fields.size("n_embd")
    if heads % CODEGEN_SHARDS:
        raise fields.error("n_head", f"a multiple of {CODEGEN_SHARDS}", heads)
    head_dim = _head_dim(fields, heads, width)
    rotary_dim = fields.values.get("rotary_dim", 64)
    if not isinstance(rotary_dim, int) or not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise fields.error("rotary_dim", f"an even number up to {head_dim}", rotary_dim)
    return {
        "width": width,
        "mlp_width": fields.size("n_inner", 4 * width),
        "layers": fields.size("n_layer"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": head_dim,
        "rotary_dim": rotary_dim,
        "rotary_pairs": "neighbors",
        "max_positions": fields.size("n_positions", 2048),
        "norm": "layer",
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5),
        "activation": fields.activation("activation_function", "gelu_new"),
        "gated": False,
        "residual": "parallel_one_norm",
        "mlp_bias": True,
        "head_bias": True,
        "tied": fields.flag("tie_word_embeddings", False),
    }


def _write_codegen(config: DecoderConfig) -> dict[str, Any]:
    return {
        "n_embd": config.width,
        "n_inner": config.mlp_width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": config.max_positions,
        "n_ctx": config.max_positions,
        "rotary_dim": config.rotary_dim,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": _activation(config),
    }


CODEGEN_SHARDS = 4
"""TPU cores that CodeGen's fused projection is laid out for."""


def _table_codegen(config: DecoderConfig) -> list[Tensor]:
    width, inner, n = config.width, config.mlp_width, config.layers
    block = "transformer.h.{}."

    def split(tensor: np.ndarray) -> list[np.ndarray]:
        # Each core's rows hold its heads' queries, values and keys, in that order.
        # [S, 3, H d / S, D]
        shards = tensor.reshape(CODEGEN_SHARDS, 3, width // CODEGEN_SHARDS, width)
        query, value, key = (shards[:, i].reshape(width, width).T for i in range(3))  # [D, H d]
        return [query, key, value]

    def join(leaves: Any) -> np.ndarray:
        query, key, value = (leaf.T.reshape(CODEGEN_SHARDS, -1, width) for leaf in leaves)
        return np.stack([query, value, key], 1).reshape(3 * width, width)  # [S 3 H d / S, D]

    table = [
        whole("transformer.wte.weight", "embed/tokens", (config.vocab_size, width)),
        _fused(f"{block}attn.qkv_proj.weight", "kernel", (3 * width, width), n, split, join),
    ]
    table += _linear(f"{block}attn.out_proj", "layers/attention/out", width, width, n, False)
    table += _linear(f"{block}mlp.fc_in", "layers/mlp/up", width, inner, n, True)
    table += _linear(f"{block}mlp.fc_out", "layers/mlp/down", inner, width, n, True)
    table += _layer_norm(f"{block}ln_1", "layers/attention_norm", width, n)
    table += _layer_norm("transformer.ln_f", "final_norm", width)
    return table + _head_table(config)


def _read_opt(fields: Fields) -> dict[str, Any]:
    heads, width = fields.size("num_attention_heads"), fields.size("hidden_size")
    fields.require("do_layer_norm_before", True, True)
    fields.require("word_embed_proj_dim", width, width)
    fields.require("layer_norm_elementwise_affine", True, True)
    fields.require("_remove_final_layer_norm", False, False)
    bias = fields.flag("enable_bias", True)
    head_dim = _head_dim(fields, heads, width)
    return {
        "width": width,
        "mlp_width": fields.size("ffn_dim"),
        "layers": fields.size("num_hidden_layers"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": head_dim,
        "max_positions": fields.size("max_position_embeddings", 2048),
        "norm": "layer",
        "activation": fields.activation("activation_function", "relu"),
        "gated": False,
        "positions": "learned",
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bias,
        "tied": fields.flag("tie_word_embeddings", True),
    }


def _write_opt(config: DecoderConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "word_embed_proj_dim": config.width,
        "ffn_dim": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.max_positions,
        "activation_function": _activation(config),
        "enable_bias": config.qkv_bias,
        "do_layer_norm_before": True,
    }


OPT_OFFSET = 2
"""OPT's table of positions begins with rows that no token uses."""


def _table_opt(config: DecoderConfig) -> list[Tensor]:
    width, n = config.width, config.layers
    block = "model.decoder.layers.{}."
    unused = np.zeros((OPT_OFFSET, width), np.float32)
    table = [
        whole("model.decoder.embed_tokens.weight", "embed/tokens", (config.vocab_size, width)),
        Tensor(
            "model.decoder.embed_positions.weight",
            (config.max_positions + OPT_OFFSET, width),
            ("embed/positions",),
            split=lambda tensor: [tensor[OPT_OFFSET:]],
            join=lambda leaves: np.concatenate([unused.astype(leaves[0].dtype), leaves[0]]),
        ),
    ]
    for ours, theirs in (
        ("query", "q_proj"),
        ("key", "k_proj"),
        ("value", "v_proj"),
        ("out", "out_proj"),
    ):
        bias = config.out_bias if ours == "out" else config.qkv_bias
        table += _linear(
            f"{block}self_attn.{theirs}", f"layers/attention/{ours}", width, width, n, bias
        )
    table += _linear(f"{block}fc1", "layers/mlp/up", width, config.mlp_width, n, config.mlp_bias)
    table += _linear(f"{block}fc2", "layers/mlp/down", config.mlp_width, width, n, config.mlp_bias)
    table += _layer_norm(f"{block}self_attn_layer_norm", "layers/attention_norm", width, n)
    table += _layer_norm(f"{block}final_layer_norm", "layers/mlp_norm", width, n)
    table += _layer_norm("model.decoder.final_layer_norm", "final_norm", width)
    return table + _head_table(config)


def _linear(
    name: str, leaf: str, inputs: int, outputs: int, layers: int, bias: bool
) -> list[Tensor]:
    kernel = linear(f"{name}.weight", f"{leaf}/kernel", inputs, outputs, layers)
    return [kernel, *([whole(f"{name}.bias", f"{leaf}/bias", (outputs,), layers)] if bias else [])]


def _layer_norm(name: str, leaf: str, width: int, layers: int = 0) -> list[Tensor]:
    scale = whole(f"{name}.weight", f"{leaf}/scale", (width,), layers)
    return [scale, whole(f"{name}.bias", f"{leaf}/bias", (width,), layers)]


def _fused(
    name: str, kind: str, shape: tuple[int, ...], layers: int, split: Callable, join: Callable
) -> Tensor:
    leaves = tuple(f"layers/attention/{part}/{kind}" for part in ("query", "key", "value"))
    return Tensor(name, shape, leaves, layers, split, join)


def _head_table(config: DecoderConfig) -> list[Tensor]:
    name = head_name(config)
    kernel = linear(name, "head/kernel", config.width, config.vocab_size)
    table = [] if config.tied else [kernel]
    if config.head_bias:
        table.append(whole(name.replace("weight", "bias"), "head/bias", (config.vocab_size,)))
    return table


def head_name(config: DecoderConfig) -> str:
    """The head's kernel in a checkpoint; some hold it although it is tied to the embedding."""
    return NEOX_HEAD if config.family == "gpt_neox" else "lm_head.weight"


NEOX_HEAD = "embed_out.weight"
"""Transformers 5 reads it as `lm_head.weight`, and some files have that name."""


def embedding_name(config: DecoderConfig) -> str:
    """The table of tokens in a checkpoint."""
    (entry,) = (e for e in FAMILIES[config.family].table(config) if e.leaves == ("embed/tokens",))
    return entry.name


def _activation(config: DecoderConfig) -> str:
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return names[config.activation]


FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", _read_llama, _write_llama, _table_llama),
    "mistral": Family("MistralForCausalLM", _read_mistral, _write_llama, _table_llama),
    "qwen2": Family("Qwen2ForCausalLM", _read_qwen2, _write_llama, _table_llama),
    "qwen3": Family("Qwen3ForCausalLM", _read_qwen3, _write_llama, _table_llama),
    "gpt_neox": Family("GPTNeoXForCausalLM", _read_neox, _write_neox, _table_neox),
    "opt": Family("OPTForCausalLM", _read_opt, _write_opt, _table_opt),
    "codegen": Family("CodeGenForCausalLM", _read_codegen, _write_codegen, _table_codegen),
}

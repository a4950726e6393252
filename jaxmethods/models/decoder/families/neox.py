"""GPT-NeoX (Pythia): part of each head rotates, and one tensor holds queries, keys and values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.families.family import (
    activation_name,
    fused_row,
    head_dim_of,
    head_rows,
    layer_norm_rows,
    linear_rows,
    write_rope,
)
from jaxmethods.models.hub.config import Fields
from jaxmethods.models.hub.tensors import Tensor, whole


def read_neox(fields: Fields) -> dict[str, Any]:
    """Fields of `DecoderConfig` from GPT-NeoX's `config.json`."""
    heads, width = fields.size("num_attention_heads"), fields.size("hidden_size")
    head_dim = head_dim_of(fields, heads, width)
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


def write_neox(config: DecoderConfig) -> dict[str, Any]:
    """GPT-NeoX's `config.json`."""
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": activation_name(config),
        "use_parallel_residual": config.residual == "parallel",
        "attention_bias": config.qkv_bias,
        "rotary_pct": _share(config.rotary_dim, config.head_dim),
        "rotary_emb_base": config.rope_theta,
        **write_rope(config),
    }


def _share(part: int, whole: int) -> float:
    """part / whole, rounded such that int(whole * share) is the part."""
    share = part / whole
    return share if int(whole * share) == part else math.nextafter(share, math.inf)


def table_neox(config: DecoderConfig) -> list[Tensor]:
    """The tensors of a GPT-NeoX checkpoint."""
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
        fused_row(f"{fused}.weight", "kernel", (3 * width, width), n, split, join),
    ]
    if config.qkv_bias:
        table.append(fused_row(f"{fused}.bias", "bias", (3 * width,), n, split, join))
    table += linear_rows(
        f"{block}attention.dense", "layers/attention/out", width, width, n, config.out_bias
    )
    table += linear_rows(f"{block}mlp.dense_h_to_4h", "layers/mlp/up", width, inner, n, True)
    table += linear_rows(f"{block}mlp.dense_4h_to_h", "layers/mlp/down", inner, width, n, True)
    table += layer_norm_rows(f"{block}input_layernorm", "layers/attention_norm", width, n)
    table += layer_norm_rows(f"{block}post_attention_layernorm", "layers/mlp_norm", width, n)
    table += layer_norm_rows("gpt_neox.final_layer_norm", "final_norm", width)
    return table + head_rows(config)

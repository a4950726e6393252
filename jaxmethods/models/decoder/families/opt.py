"""OPT: learned positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.families.family import (
    activation_name,
    head_dim_of,
    head_rows,
    layer_norm_rows,
    linear_rows,
)
from jaxmethods.models.hub.config import Fields
from jaxmethods.models.hub.tensors import Tensor, whole

OPT_OFFSET = 2
"""OPT's table of positions begins with rows that no token uses."""


def read_opt(fields: Fields) -> dict[str, Any]:
    """Fields of `DecoderConfig` from OPT's `config.json`."""
    heads, width = fields.size("num_attention_heads"), fields.size("hidden_size")
    fields.require("do_layer_norm_before", True, True)
    fields.require("word_embed_proj_dim", width, width)
    fields.require("layer_norm_elementwise_affine", True, True)
    fields.require("_remove_final_layer_norm", False, False)
    bias = fields.flag("enable_bias", True)
    head_dim = head_dim_of(fields, heads, width)
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


def write_opt(config: DecoderConfig) -> dict[str, Any]:
    """OPT's `config.json`."""
    return {
        "hidden_size": config.width,
        "word_embed_proj_dim": config.width,
        "ffn_dim": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.max_positions,
        "activation_function": activation_name(config),
        "enable_bias": config.qkv_bias,
        "do_layer_norm_before": True,
    }


def table_opt(config: DecoderConfig) -> list[Tensor]:
    """The tensors of an OPT checkpoint."""
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
        table += linear_rows(
            f"{block}self_attn.{theirs}", f"layers/attention/{ours}", width, width, n, bias
        )
    table += linear_rows(
        f"{block}fc1", "layers/mlp/up", width, config.mlp_width, n, config.mlp_bias
    )
    table += linear_rows(
        f"{block}fc2", "layers/mlp/down", config.mlp_width, width, n, config.mlp_bias
    )
    table += layer_norm_rows(f"{block}self_attn_layer_norm", "layers/attention_norm", width, n)
    table += layer_norm_rows(f"{block}final_layer_norm", "layers/mlp_norm", width, n)
    table += layer_norm_rows("model.decoder.final_layer_norm", "final_norm", width)
    return table + head_rows(config)

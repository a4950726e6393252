"""CodeGen: one norm a layer, and a fused projection that is laid out for four TPU cores."""

from __future__ import annotations

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
)
from jaxmethods.models.hub.config import Fields
from jaxmethods.models.hub.tensors import Tensor, whole

CODEGEN_NAMES = {
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""Other names of CodeGen's fields; where both are given, these are taken."""
CODEGEN_SHARDS = 4
"""TPU cores that CodeGen's fused projection is laid out for."""


def read_codegen(fields: Fields) -> dict[str, Any]:
    """Fields of `DecoderConfig` from CodeGen's `config.json`."""
    renamed = {n: fields.values[name] for name, n in CODEGEN_NAMES.items() if name in fields.values}
    fields = Fields({**fields.values, **renamed}, fields.source)
    heads, width = fields.size("n_head"), fields.size("n_embd")
    if heads % CODEGEN_SHARDS:
        raise fields.error("n_head", f"a multiple of {CODEGEN_SHARDS}", heads)
    head_dim = head_dim_of(fields, heads, width)
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


def write_codegen(config: DecoderConfig) -> dict[str, Any]:
    """CodeGen's `config.json`."""
    return {
        "n_embd": config.width,
        "n_inner": config.mlp_width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": config.max_positions,
        "n_ctx": config.max_positions,
        "rotary_dim": config.rotary_dim,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": activation_name(config),
    }


def table_codegen(config: DecoderConfig) -> list[Tensor]:
    """The tensors of a CodeGen checkpoint."""
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
        fused_row(f"{block}attn.qkv_proj.weight", "kernel", (3 * width, width), n, split, join),
    ]
    table += linear_rows(f"{block}attn.out_proj", "layers/attention/out", width, width, n, False)
    table += linear_rows(f"{block}mlp.fc_in", "layers/mlp/up", width, inner, n, True)
    table += linear_rows(f"{block}mlp.fc_out", "layers/mlp/down", inner, width, n, True)
    table += layer_norm_rows(f"{block}ln_1", "layers/attention_norm", width, n)
    table += layer_norm_rows("transformer.ln_f", "final_norm", width)
    return table + head_rows(config)

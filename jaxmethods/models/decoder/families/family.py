"""What a family of decoders is, and what tables of several families have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.hub.config import ACTIVATIONS, Fields
from jaxmethods.models.hub.tensors import Tensor, linear, whole


class Family(NamedTuple):
    """One `model_type`."""

    architecture: str
    """Hugging Face's class."""
    read: Callable[[Fields], dict[str, Any]]
    """`config.json` -> fields of `DecoderConfig`."""
    write: Callable[[DecoderConfig], dict[str, Any]]
    """The inverse."""
    table: Callable[[DecoderConfig], list[Tensor]]


def head_dim_of(fields: Fields, heads: int, width: int) -> int:
    """The share of each head in the width."""
    name = "n_head" if "n_head" in fields.values else "num_attention_heads"
    if width % heads:
        raise fields.error(name, f"a divisor of the width {width}", heads)
    return width // heads


def require_full_layers(fields: Fields) -> None:
    """Refuses `layer_types` of another kind, with which transformers fails or forgets tokens."""
    kinds = fields.get("layer_types", [])
    if not isinstance(kinds, list) or set(map(str, kinds)) - {"full_attention", "attention"}:
        raise fields.error("layer_types", "'full_attention' only", kinds)


def activation_name(config: DecoderConfig) -> str:
    """Hugging Face's name of the activation."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return names[config.activation]


def write_rope(config: DecoderConfig) -> dict[str, Any]:
    """The fields of `config.json` that say how positions rotate."""
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


def linear_rows(
    name: str, leaf: str, inputs: int, outputs: int, layers: int, bias: bool
) -> list[Tensor]:
    """Kernel, and bias if there is one, of a linear map in every layer.

    Args:
        name: the stored tensors', with {} for the layer and without ".weight".
        leaf: path of the map in the parameter tree.
        inputs: width of what it takes.
        outputs: width of what it gives.
        layers: how many layers there are.
        bias: whether there is one.

    Returns:
        One or two rows of a family's table.
    """
    kernel = linear(f"{name}.weight", f"{leaf}/kernel", inputs, outputs, layers)
    return [kernel, *([whole(f"{name}.bias", f"{leaf}/bias", (outputs,), layers)] if bias else [])]


def layer_norm_rows(name: str, leaf: str, width: int, layers: int = 0) -> list[Tensor]:
    """Scale and bias of a layer norm.

    Args:
        name: the stored tensors', with {} for the layer and without ".weight".
        leaf: path of the norm in the parameter tree.
        width: of what it normalizes.
        layers: how many layers there are; 0: one norm, not one for each layer.

    Returns:
        Two rows of a family's table.
    """
    scale = whole(f"{name}.weight", f"{leaf}/scale", (width,), layers)
    return [scale, whole(f"{name}.bias", f"{leaf}/bias", (width,), layers)]


def fused_row(
    name: str, kind: str, shape: tuple[int, ...], layers: int, split: Callable, join: Callable
) -> Tensor:
    """One tensor that holds queries, keys and values.

    Args:
        name: the stored tensor's, with {} for the layer.
        kind: "kernel" or "bias".
        shape: of the stored tensor.
        layers: how many layers there are.
        split: the stored tensor -> queries', keys' and values' leaves of one layer.
        join: the inverse.

    Returns:
        One row of a family's table.
    """
    leaves = tuple(f"layers/attention/{part}/{kind}" for part in ("query", "key", "value"))
    return Tensor(name, shape, leaves, layers, split, join)


def head_rows(config: DecoderConfig) -> list[Tensor]:
    """The head, unless it is tied to the embedding, and its bias if there is one."""
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

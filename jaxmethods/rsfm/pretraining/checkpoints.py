"""Whole masked autoencoders from released checkpoints: MAE, SatMAE, Scale-MAE.

Encoders alone are read by `models.geovit.load`; here their decoders come along, to go on with
pretraining or to paint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.models.geovit import checkpoint
from jaxmethods.models.geovit.checkpoint import Source
from jaxmethods.models.hub.folders import HubError, some_of
from jaxmethods.rsfm.config import MAEConfig, ScaleMAEConfig


class LoadedMAE(NamedTuple):
    """A masked autoencoder in memory."""

    config: MAEConfig
    params: Any
    """{"encoder", "decoder"}"""


class LoadedScaleMAE(NamedTuple):
    """A Scale-MAE in memory."""

    config: ScaleMAEConfig
    params: Any
    """{"encoder", "decoder"}"""


def load_mae(
    source: str | Path | Mapping[str, Any],
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> LoadedMAE:
    """Reads MAE's and SatMAE's checkpoints with their decoders.

    Args:
        source: a safetensors file, or names and arrays.
        heads: of the encoder; None: one for every 64 entries.
        decoder_heads: None: one for every 32 entries.
        groups: indices of the bands of SatMAE's groups; None: those of its release.

    Returns:
        Config and parameters.

    Raises:
        HubError: a layout without a decoder of this kind, or tensors that are missing or unknown.
    """
    tensors = checkpoint.read(source)
    loaded = checkpoint.load(tensors, heads=heads, groups=groups)
    given = Source({name: tensors[name] for name in loaded.set_aside})
    decoder = _decoder(given)
    if loaded.layout == "satmae_group":
        number = len(loaded.config.groups)
        decoder["pred"] = {str(n): given.dense(f"decoder_pred.{n}") for n in range(number)}
    else:
        decoder["pred"] = given.dense("decoder_pred")
    # Fixed sines, which are computed.
    places = given.left.pop("decoder_pos_embed", None)
    channels = given.left.pop("decoder_channel_embed", None)
    _check_all_used(given)
    stack = decoder["blocks"]["mlp"]["fc1"]["bias"]
    width = len(decoder["mask_token"])
    fields: dict[str, Any] = {"decoder_width": width, "decoder_depth": len(stack)}
    fields["decoder_heads"] = decoder_heads or max(width // 32, 1)
    if channels is not None:
        fields["decoder_channel_width"] = channels.shape[-1]
    if loaded.layout == "satmae_temporal" and places is not None:
        fields["decoder_date_width"] = (width - places.shape[-1]) // 3
    config = MAEConfig(encoder=loaded.config, **fields)
    return LoadedMAE(config, {"encoder": loaded.params, "decoder": _to_jax(decoder)})


def load_scale_mae(
    source: str | Path | Mapping[str, Any],
    *,
    image_size: int = 224,
    heads: int | None = None,
    decoder_heads: int | None = None,
) -> LoadedScaleMAE:
    """Reads Scale-MAE's checkpoints with their decoders.

    Args:
        source: a safetensors file, or names and arrays.
        image_size: pixels along a side, which no tensor says.
        heads: of the encoder; None: one for every 64 entries.
        decoder_heads: None: one for every 32 entries.

    Returns:
        Config and parameters.

    Raises:
        HubError: tensors that are missing or unknown.
    """
    tensors = checkpoint.read(source)
    loaded = checkpoint.load(tensors, heads=heads)
    given = Source({name: tensors[name] for name in loaded.set_aside})
    decoder = _decoder(given)
    decoder["fpn"] = {
        "first": given.dense("fpn.fpn1.0"),
        "norm": given.dense("fpn.fpn1.1.ln"),
        "second": given.dense("fpn.fpn1.3"),
        "only": given.dense("fpn.fpn2.0"),
    }
    shared = "fcn.proj.weight" in given
    names = {"high": "fcn" if shared else "fcn_high", "low": "fcn" if shared else "fcn_low"}
    tensors = dict(given.left)
    for part, name in names.items():
        given.left |= {own: tensors[own] for own in tensors if own.startswith(f"{name}.")}
        decoder[part] = _head(given, name)
    for unread in ("mask_token_decoder", "decoder_pos_embed"):
        given.left.pop(unread, None)
    _check_all_used(given)
    width = len(decoder["mask_token"])
    config = ScaleMAEConfig(
        encoder=loaded.config.model_copy(update={"image_size": image_size}),
        decoder_width=width,
        decoder_depth=len(decoder["blocks"]["mlp"]["fc1"]["bias"]),
        decoder_heads=decoder_heads or max(width // 32, 1),
        fcn_width=len(decoder["high"]["proj"]["bias"]),
        fcn_layers=len(decoder["high"]["blocks"]),
    )
    return LoadedScaleMAE(config, {"encoder": loaded.params, "decoder": _to_jax(decoder)})


def _decoder(given: Source) -> dict[str, Any]:
    mask_token = given.take("mask_token").reshape(-1)
    return {
        "embed": given.dense("decoder_embed"),
        "mask_token": mask_token,
        "blocks": checkpoint.blocks(given, "decoder_blocks", len(mask_token)),
        "norm": given.dense("decoder_norm"),
    }


def _head(given: Source, name: str) -> dict[str, Any]:
    def block(prefix: str) -> dict[str, Any]:
        return {
            "depthwise": given.dense(f"{prefix}.convs.1"),
            "pointwise": given.dense(f"{prefix}.convs.3"),
            "residual": given.dense(f"{prefix}.residual"),
        }

    start = f"{name}.conv_blocks."
    numbers = sorted({int(own.split(".")[2]) for own in given.left if own.startswith(start)})
    return {
        "proj": given.dense(f"{name}.proj"),
        "blocks": [block(f"{start}{number}") for number in numbers],
        "norm": given.dense(f"{name}.pred.0.ln"),
        "enlarge": given.dense(f"{name}.pred.1"),
        "grouped": given.dense(f"{name}.pred.3"),
        "pointwise": given.dense(f"{name}.pred.5"),
        "pixels": given.dense(f"{name}.pred.7"),
    }


def _check_all_used(given: Source) -> None:
    if given.missing or given.left:
        parts = [("lacks", given.missing), ("has unknown tensors", sorted(given.left))]
        found = "; ".join(f"{what} {some_of(names)}" for what, names in parts if names)
        raise HubError(f"checkpoint: its decoder {found}")


def _to_jax(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)

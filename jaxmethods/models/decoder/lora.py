"""Low-rank additions to a decoder's kernels: W + scale A B, of which A and B alone are trained.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685. With r
the rank, A [D, r] begins uniform in +-1 / sqrt(D) (Kaiming's with a = sqrt(5), as in PEFT) and B
[r, O] as zeros, so that nothing is changed at first.

    adapters = lora.init(key, config, rank=8)
    outputs = decoder.forward(lora.attach(params, adapters, scale), config, ids)
    merged = lora.merge(params, adapters, scale)

`attach` leaves the kernels as they are: a layer computes x W + (x A) B, so that the gradient to A
and B costs no gradient to W.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxmethods.layout import path_name
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.layer import Params
from jaxmethods.models.decoder.network import init_params

Adapters: TypeAlias = dict[str, dict[str, jax.Array]]
""""attention/query" -> {"a": [L, D, r], "b": [L, r, O]}."""

TARGETS = {
    **{name: f"attention/{name}" for name in ("query", "key", "value", "out")},
    **{name: f"mlp/{name}" for name in ("up", "gate", "down")},
}


def init(
    key: jax.Array,
    config: DecoderConfig,
    rank: int,
    targets: Sequence[str] = ("query", "value"),
    dtype: Any = jnp.float32,
) -> Adapters:
    """Fresh adapters, which change nothing yet.

    Args:
        key: typed random key.
        config: sizes of the decoder.
        rank: r.
        targets: among query, key, value, out, up, gate, down.
        dtype: of the adapters.

    Returns:
        A and B of every target, with the layers in front.

    Raises:
        ValueError: an unknown target, or one that the decoder doesn't have.
    """
    shapes = jax.eval_shape(lambda key: init_params(key, config), key)["layers"]
    found: Adapters = {}
    for number, name in enumerate(targets):
        if name not in TARGETS or TARGETS[name].split("/")[1] not in shapes[_room(name)]:
            known = [one for one in TARGETS if one in shapes[_room(one)]]
            raise ValueError(f"targets: expected some of {', '.join(known)}, got {name!r}")
        layers, inputs, outputs = shapes[_room(name)][name]["kernel"].shape
        bound = inputs**-0.5
        own = jax.random.fold_in(key, number)
        found[TARGETS[name]] = {
            "a": jax.random.uniform(own, (layers, inputs, rank), dtype, -bound, bound),
            "b": jnp.zeros((layers, rank, outputs), dtype),
        }
    return found


def attach(params: Params, adapters: Adapters, scale: float) -> Params:
    """The decoder's parameters with adapters beside their kernels.

    Args:
        params: with stacked layers.
        adapters: of `init`.
        scale: alpha / r.

    Returns:
        Parameters that every function of the decoder takes.
    """
    return _with(
        params,
        adapters,
        lambda dense, own: dense | {"lora_a": own["a"], "lora_b": scale * own["b"]},
    )


def weakened(params: Params, strength: Any) -> Params:
    """Parameters whose attached additions are multiplied by a number, 1 for what they are.

    Less than 1 at test time undoes a part of the tuning (Tang et al., "SALMONN", ICLR 2024, arXiv
    2310.13289, activation tuning). Kernels without additions stay as they are.

    Args:
        params: of `attach`, or without additions.
        strength: [] float, may be traced.

    Returns:
        Parameters of the same shapes.
    """

    def changed(path: Any, leaf: jax.Array) -> jax.Array:
        return strength * leaf if path_name(path).endswith("/lora_b") else leaf

    return params | {"layers": jax.tree_util.tree_map_with_path(changed, params["layers"])}


def merge(params: Params, adapters: Adapters, scale: float) -> Params:
    """The decoder's parameters with the additions in their kernels.

    Args:
        params: with stacked layers.
        adapters: of `init`.
        scale: alpha / r.

    Returns:
        Parameters of the same shapes and types.
    """

    def added(dense: Params, own: dict[str, jax.Array]) -> Params:
        kernel = dense["kernel"]
        wide = reduce(jnp.promote_types, (own["a"].dtype, own["b"].dtype, kernel.dtype, "float32"))
        # Rounded once: half precision would lose a small change, or the sum over the rank.
        change = jnp.einsum("ldr,lro->ldo", own["a"].astype(wide), own["b"].astype(wide))
        return dense | {"kernel": (kernel.astype(wide) + scale * change).astype(kernel.dtype)}

    return _with(params, adapters, added)


def _with(params: Params, adapters: Adapters, change: Any) -> Params:
    """Parameters whose dense layers that have adapters are changed."""
    layers = dict(params["layers"])
    for path, own in adapters.items():
        room, name = path.split("/")
        layers[room] = layers[room] | {name: change(layers[room][name], own)}
    return params | {"layers": layers}


def _room(name: str) -> str:
    return TARGETS.get(name, "attention/").split("/")[0]

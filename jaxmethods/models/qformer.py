r"""A Q-Former: learned queries that read a set of frames (Li et al., BLIP-2, arXiv 2301.12597).

With Q queries of width D and a window X [k, C] of frames,

    h = LN(queries),  h = LN(h + W_o SelfAttn(h)),  h = LN(h + W_o' CrossAttn(h, X)),
    h = LN(h + W_2 gelu(W_1 h)),

the last three in every layer, as BERT has them: norms behind the sums. There are no positions, so
that the order of frames in a window doesn't matter.

Keys and values of all frames for a few queries are wasted work. `absorb` applies the maps to the
queries: (W_k^T q) x is the score (the key's bias adds the same to all frames) and W_v (sum a x) +
b_v what is read.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from jaxmethods.config import Config
from jaxmethods.models.decoder.layer import Params, dense, over_layers
from jaxmethods.models.norms import layer_norm
from jaxmethods.models.products import gelu, keep_products


class QFormerConfig(Config):
    """Sizes; the defaults are the published speech-text model's."""

    width: PositiveInt = 768
    layers: PositiveInt = 2
    heads: PositiveInt = 12
    mlp_width: PositiveInt = 3072
    queries: PositiveInt = 1
    norm_eps: Annotated[float, Field(gt=0)] = 1e-12
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout of states and attention probabilities, in training."""
    deviation: PositiveFloat | None = 0.02
    """Standard deviation of new kernels; null: 1 / sqrt(width), without which a small one learns
    nothing for hundreds of steps."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"heads: expected a divisor of the width {self.width}, got {self.heads}"
            )
        return self


class Read(NamedTuple):
    """What queries found in windows."""

    states: jax.Array
    """[N, Q, D]."""
    attention: Any = None
    """[L, N, H, Q, k]: probabilities of the cross attention."""


def read(
    params: Params,
    config: QFormerConfig,
    windows: jax.Array,
    mask: jax.Array | None = None,
    *,
    key: jax.Array | None = None,
    absorb: bool = True,
    attention: bool = False,
) -> Read:
    """Reads windows of frames.

    Args:
        params: see `init`.
        config: sizes; static.
        windows: [N, k, C].
        mask: [N, k] bool, False on frames that aren't there; None: all are. A window without any
            has finite states.
        key: for dropout; None: no dropout.
        absorb: apply the key and value maps to the queries, which gives the same up to rounding.
        attention: whether probabilities are wanted.

    Returns:
        The states of all queries; see `Read`.
    """
    number, dtype = len(windows), windows.dtype
    x = layer_norm(params["norm"], params["queries"].astype(dtype), config.norm_eps)
    x = jnp.broadcast_to(x, (number, *x.shape[-2:]))  # [N, Q, D]
    keys = None if key is None else jax.random.split(key, 6 * config.layers + 1)
    x = _dropped(x, config, None if keys is None else keys[-1])
    per_layer = None if keys is None else keys[:-1].reshape(config.layers, 6)
    cross = _absorbed if absorb else _plain

    def body(x: jax.Array, inputs: tuple[Params, Any]) -> tuple[jax.Array, Any]:
        layer, own = inputs
        own = [None] * 6 if own is None else own
        found, _ = _plain(layer["attention"], config, x, x, None, own[0])
        x = _added(layer, "attention", config, x, found, own[1])
        found, weights = cross(layer["cross"], config, x, windows, mask, own[2])
        x = _added(layer, "cross", config, x, found, own[3])
        inner = gelu(dense(layer["mlp"]["up"], x))
        change = _dropped(dense(layer["mlp"]["down"], inner), config, own[4])
        x = layer_norm(layer["mlp_norm"], x + change, config.norm_eps)
        return x, weights if attention else None

    x, weights = over_layers(keep_products(body), x, params["layers"], per_layer)
    return Read(x, weights)


def init(key: jax.Array, config: QFormerConfig, inputs: int, dtype: Any = jnp.float32) -> Params:
    """Random parameters: kernels from N(0, deviation^2), queries from N(0, 0.02^2), scales 1.

    Args:
        key: typed random key [].
        config: sizes; static.
        inputs: C, the width of frames.
        dtype: of the parameters.

    Returns:
        `queries` [Q, D], `norm`, and stacked `layers`.
    """
    keys = iter(jax.random.split(key, 11))
    layers, width = config.layers, config.width
    deviation = width**-0.5 if config.deviation is None else config.deviation

    def linear(inputs: int, outputs: int) -> Params:
        kernel = deviation * jax.random.normal(next(keys), (layers, inputs, outputs), dtype)
        return {"kernel": kernel, "bias": jnp.zeros((layers, outputs), dtype)}

    def norm(*shape: int) -> Params:
        return {"scale": jnp.ones(shape, dtype), "bias": jnp.zeros(shape, dtype)}

    def attention(seen: int) -> Params:
        return {
            "query": linear(width, width),
            "key": linear(seen, width),
            "value": linear(seen, width),
            "out": linear(width, width),
        }

    return {
        "queries": 0.02 * jax.random.normal(next(keys), (config.queries, width), dtype),
        "norm": norm(width),
        "layers": {
            "attention": attention(width),
            "attention_norm": norm(layers, width),
            "cross": attention(inputs),
            "cross_norm": norm(layers, width),
            "mlp": {
                "up": linear(width, config.mlp_width),
                "down": linear(config.mlp_width, width),
            },
            "mlp_norm": norm(layers, width),
        },
    }


def _added(
    layer: Params, name: str, config: QFormerConfig, x: jax.Array, found: jax.Array, key: Any
) -> jax.Array:
    """LN(x + what an attention found)."""
    change = _dropped(dense(layer[name]["out"], found), config, key)
    return layer_norm(layer[f"{name}_norm"], x + change, config.norm_eps)


def _plain(
    params: Params,
    config: QFormerConfig,
    x: jax.Array,
    seen: jax.Array,
    mask: jax.Array | None,
    key: Any,
) -> tuple[jax.Array, jax.Array]:
    """Attention of x [N, Q, D] to [N, k, C]: what it found [N, Q, D] and its probabilities."""
    q = _split(dense(params["query"], x), config)  # [N, Q, H, d]
    k, v = (_split(dense(params[name], seen), config) for name in ("key", "value"))
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k, preferred_element_type=jnp.float32)
    weights = _probabilities(scores, mask, config)
    used = _dropped(weights, config, key).astype(v.dtype)
    found = jnp.einsum("nhqk,nkhd->nqhd", used, v)
    return found.reshape(*x.shape[:-1], config.width), weights


def _absorbed(
    params: Params,
    config: QFormerConfig,
    x: jax.Array,
    seen: jax.Array,
    mask: jax.Array | None,
    key: Any,
) -> tuple[jax.Array, jax.Array]:
    """The same, with the maps applied to the queries."""
    q = _split(dense(params["query"], x), config)  # [N, Q, H, d]
    kernels = (params[name]["kernel"].astype(x.dtype) for name in ("key", "value"))
    to_key, to_value = (_split(kernel, config) for kernel in kernels)  # [C, H, d]
    asked = jnp.einsum("nqhd,chd->nhqc", q, to_key)
    scores = jnp.einsum("nhqc,nkc->nhqk", asked, seen, preferred_element_type=jnp.float32)
    weights = _probabilities(scores, mask, config)
    used = _dropped(weights, config, key).astype(x.dtype)
    context = jnp.einsum("nhqk,nkc->nhqc", used, seen)
    found = jnp.einsum("nhqc,chd->nqhd", context, to_value)
    bias = _split(params["value"]["bias"].astype(x.dtype), config)  # [H, d]
    # With dropout, probabilities no longer add up to 1.
    share = jnp.swapaxes(jnp.sum(used, axis=-1), 1, 2)[..., None]  # [N, Q, H, 1]
    return (found + share * bias).reshape(*x.shape[:-1], config.width), weights


def _probabilities(scores: jax.Array, mask: jax.Array | None, config: QFormerConfig) -> jax.Array:
    scores = scores * (config.width // config.heads) ** -0.5
    if mask is not None:
        # Finite, so that a window without frames isn't NaN.
        least = -0.7 * jnp.finfo(scores.dtype).max
        scores = jnp.where(mask[:, None, None], scores, least)
    return jax.nn.softmax(scores, axis=-1)


def _split(x: jax.Array, config: QFormerConfig) -> jax.Array:
    """[..., D] -> [..., H, d]."""
    return x.reshape(*x.shape[:-1], config.heads, config.width // config.heads)


def _dropped(x: jax.Array, config: QFormerConfig, key: Any) -> jax.Array:
    if key is None or config.dropout == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - config.dropout, x.shape)
    return jnp.where(kept, x / (1 - config.dropout), 0)

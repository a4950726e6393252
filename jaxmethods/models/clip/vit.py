r"""The vision transformer of CLIP: pre-norm blocks, scanned over stacked layers.

    x_0 = LN_pre([class; patches W_p] + positions)
    x  <- x + Attention(LN_1 x);    x <- x + W_2 act(W_1 LN_2 x)         N times
    pooled = LN_post(x[:, 0]),      feature = W_v pooled

Dosovitskiy et al. 2021 (arXiv 2010.11929) as in Radford et al. 2021 (arXiv 2103.00020). Parameters
are nested dictionaries with the names of Hugging Face's CLIP and PyTorch's (out, in) weights; the
blocks are one stacked tree, `encoder/layers`, whose leaves have a leading layer axis N.

A forward pass returns what `taps` names, and its parts can be replaced: `Hooks` put another MLP or
attention into every block or change the residual stream after it, reading `per_layer`, a tree with
a leading layer axis that is scanned together with the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from pydantic import PositiveInt, model_validator

from jaxmethods.config import Config
from jaxmethods.models.attention import scaled_attention
from jaxmethods.models.products import gelu, keep_products, rows_product

Activation = Literal["quick_gelu", "gelu"]
TAPS = ("hidden", "token_means", "inputs")


class VisionConfig(Config):
    """Sizes of a vision tower; names and defaults are Hugging Face's (ViT-B/32)."""

    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    num_channels: PositiveInt = 3
    image_size: PositiveInt = 224
    patch_size: PositiveInt = 32
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: PositiveInt = 512

    @model_validator(mode="after")
    def _sizes_fit(self) -> VisionConfig:
        check_heads(self.hidden_size, self.num_attention_heads)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size: expected a divisor of image_size = {self.image_size}, "
                f"got {self.patch_size}"
            )
        return self

    @property
    def tokens(self) -> int:
        """L: patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


def check_heads(width: int, heads: int) -> None:
    """Raises `ValueError` where heads don't share the width of a tower."""
    if width % heads:
        raise ValueError(
            f"num_attention_heads: expected a divisor of hidden_size = {width}, got {heads}"
        )


WIDE_HEADS = {1280: 16, 1408: 16, 1664: 16}
"""Width -> heads of ViT-H, g and G, whose heads have more than 64 entries."""


def usual_heads(width: int) -> int:
    """How many heads released vision transformers of a width have, which no tensor says."""
    return WIDE_HEADS.get(width, max(width // 64, 1))


class EncoderConfig(Protocol):
    """What the blocks need of a tower's config."""

    @property
    def num_attention_heads(self) -> int: ...
    @property
    def hidden_act(self) -> Activation: ...
    @property
    def layer_norm_eps(self) -> float: ...


class Hooks(NamedTuple):
    """Replacements of parts of every block; None leaves a part as it is.

    `layer` is one block's parameters, `extra` one layer of `per_layer`.
    """

    attention: Callable[[jax.Array, Any, Any], tuple[jax.Array, Any]] | None = None
    """(LN_1 x [B, L, D], layer, extra) -> (what is added to x, anything to be read)."""
    mlp: Callable[[jax.Array, Any, Any], tuple[jax.Array, Any]] | None = None
    """(LN_2 x [B, L, D], layer, extra) -> (what is added to x, anything to be read)."""
    after: Callable[[jax.Array, Any], jax.Array] | None = None
    """(x [B, L, D] after the block, extra) -> x that the next block gets."""
    last_mlp: Callable[[jax.Array, Any, Any], tuple[jax.Array, Any]] | None = None
    """`mlp` of the last block where only the class token is asked for: gets all tokens, gives what
    is added to the first one, [B, 1, D]. None: `mlp`, and the other tokens are thrown away."""


NO_HOOKS = Hooks()


class Encoded(NamedTuple):
    """What the blocks return; None where it wasn't asked for."""

    last: jax.Array
    """[B, L, D] after the last block; [B, 1, D] where only the class token was asked for."""
    hidden: jax.Array | None = None
    """[N + 1, B, L, D]: before the first block and after every block."""
    token_means: jax.Array | None = None
    """[N, B, D]: mean over the tokens after every block."""
    inputs: dict[str, jax.Array] | None = None
    """[N, B, L, in] of "attention" (the input of q, k and v), "out_proj", "fc1" and "fc2"."""
    read: dict[str, Any] | None = None
    """What the hooks "attention" and "mlp" gave to be read, with a leading layer axis."""


class Vision(NamedTuple):
    """A vision tower's output."""

    features: jax.Array
    """[B, P]: projected, not normalized; the pooled token itself without a projection."""
    pooled: jax.Array
    """[B, D]: LN_post of the class token."""
    encoded: Encoded


def forward(
    params: Any,
    config: VisionConfig,
    pixels: jax.Array,
    *,
    projection: jax.Array | None = None,
    hooks: Hooks = NO_HOOKS,
    per_layer: Any = None,
    taps: Sequence[str] = (),
    remat: bool = False,
    pooled_only: bool = False,
) -> Vision:
    """Encodes images.

    Args:
        params: the tree that `init` makes.
        config: sizes; static.
        pixels: [B, H, W, C] float, normalized as the model expects.
        projection: [P, D], the visual projection.
        hooks, per_layer: see `Hooks`.
        taps: what to return besides: "hidden", "token_means", "inputs" (see `Encoded`).
        remat: compute blocks again in the backward pass instead of storing their insides.
        pooled_only: the last block computes the class token alone, which is all that `features` and
            `pooled` need.

    Returns:
        Features, the pooled token, and what the blocks returned.

    Raises:
        ValueError: images of another size, an unknown tap, or taps and `hooks.after` with
            `pooled_only`: they read all tokens.
    """
    x = embed(params, config, pixels)
    x = layer_norm(params["pre_layrnorm"], x, config.layer_norm_eps)
    encoded = encode(
        params["encoder"]["layers"],
        config,
        x,
        hooks=hooks,
        per_layer=per_layer,
        taps=taps,
        remat=remat,
        first_only=pooled_only,
    )
    pooled = layer_norm(params["post_layernorm"], encoded.last[:, 0], config.layer_norm_eps)
    features = pooled if projection is None else pooled @ projection.T.astype(pooled.dtype)
    return Vision(features, pooled, encoded)


def embed(params: Any, config: VisionConfig, pixels: jax.Array) -> jax.Array:
    """[B, L, D]: class token and patches, with positions, before the first norm."""
    size = (config.image_size, config.image_size, config.num_channels)
    if pixels.shape[1:] != size:
        raise ValueError(
            f"pixels: expected [B, {size[0]}, {size[1]}, {size[2]}], got {pixels.shape}"
        )
    embeddings = params["embeddings"]
    weight = embeddings["patch_embedding"]["weight"]  # [D, C, p, p]
    patch, grid = config.patch_size, config.image_size // config.patch_size
    # A convolution of stride p is a matrix product of patches, and much faster as one on CPU.
    # [B, g, p, g, p, C]
    patches = pixels.reshape(-1, grid, patch, grid, patch, config.num_channels)
    entries = config.num_channels * patch * patch  # said: no image has no size to infer it from
    patches = patches.transpose(0, 1, 3, 5, 2, 4).reshape(len(pixels), grid * grid, entries)
    tokens = patches.astype(weight.dtype) @ weight.reshape(len(weight), -1).T  # [B, g g, D]
    first = jnp.broadcast_to(embeddings["class_embedding"], (len(pixels), 1, len(weight)))
    x = jnp.concatenate([first, tokens], axis=1)
    return x + embeddings["position_embedding"]["weight"]


def encode(
    layers: Any,
    config: EncoderConfig,
    x: jax.Array,
    *,
    mask: jax.Array | None = None,
    hooks: Hooks = NO_HOOKS,
    per_layer: Any = None,
    taps: Sequence[str] = (),
    remat: bool = False,
    first_only: bool = False,
) -> Encoded:
    """All blocks, one after the other, by `lax.scan`.

    Args:
        layers: stacked parameters of the blocks, [N, ...] each.
        config: sizes; static.
        x: [B, L, D].
        mask: [B or 1, 1, L, L] bool, True where row may look at column; None: everywhere.
        hooks, per_layer: see `Hooks`.
        taps: what to return besides, see `forward`.
        remat: compute blocks again in the backward pass.
        first_only: `last` is the first token's, [B, 1, D]; the last block computes no other.

    Returns:
        The tokens after the last block, and what was asked for.

    Raises:
        ValueError: an unknown tap, or what reads all tokens together with `first_only`.
    """
    if first_only and (taps or hooks.after is not None):
        raise ValueError(
            "pooled_only: expected neither taps nor hooks.after, which read all tokens"
        )
    unknown = [tap for tap in taps if tap not in TAPS]
    if unknown:
        raise ValueError(f"taps: expected some of {', '.join(TAPS)}, got {unknown[0]!r}")

    def one(x: jax.Array, scanned: tuple[Any, Any]) -> tuple[jax.Array, dict[str, Any]]:
        layer, extra = scanned
        x, inputs, read = block(layer, config, x, mask, hooks, extra)
        found: dict[str, Any] = {"read": read}
        if "hidden" in taps:
            found["hidden"] = x
        if "token_means" in taps:
            found["token_means"] = jnp.mean(x, axis=1)
        if "inputs" in taps:
            found["inputs"] = inputs
        return x, found

    def last_one(x: jax.Array, scanned: tuple[Any, Any]) -> tuple[jax.Array, dict[str, Any]]:
        return first_token_block(scanned[0], config, x, mask, hooks, scanned[1])

    again = jax.checkpoint if remat else keep_products
    one, last_one = again(one), again(last_one)
    if first_only:
        stacks = (layers, per_layer)
        x, found = jax.lax.scan(one, x, jax.tree.map(lambda leaf: leaf[:-1], stacks))
        last, read = last_one(x, jax.tree.map(lambda leaf: leaf[-1], stacks))
        found["read"] = jax.tree.map(
            lambda before, own: jnp.concatenate([before, own[None]]), found["read"], read
        )
    else:
        last, found = jax.lax.scan(one, x, (layers, per_layer))
    hidden = found.get("hidden")
    return Encoded(
        last,
        None if hidden is None else jnp.concatenate([x[None], hidden]),
        found.get("token_means"),
        found.get("inputs"),
        found["read"] or None,
    )


def block(
    layer: Any,
    config: EncoderConfig,
    x: jax.Array,
    mask: jax.Array | None = None,
    hooks: Hooks = NO_HOOKS,
    extra: Any = None,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    """One block.

    Args:
        layer: its parameters.
        config: sizes; static.
        x: [B, L, D].
        mask: [B or 1, 1, L, L] bool, True where row may look at column; None: everywhere.
        hooks: replacements of its parts.
        extra: this block's part of `per_layer`, for the hooks.

    Returns:
        The residual stream [B, L, D] after it, inputs of its linear maps, and what hooks read.
    """
    inputs: dict[str, jax.Array] = {}
    read: dict[str, Any] = {}
    h = layer_norm(layer["layer_norm1"], x, config.layer_norm_eps)
    if hooks.attention is None:
        inputs["attention"], inputs["out_proj"] = h, attend(layer["self_attn"], config, h, mask)
        change = linear(layer["self_attn"]["out_proj"], inputs["out_proj"])
    else:
        change, read["attention"] = hooks.attention(h, layer, extra)
    x = x + change
    h = layer_norm(layer["layer_norm2"], x, config.layer_norm_eps)
    if hooks.mlp is None:
        inputs["fc1"] = h
        inputs["fc2"] = activation(config.hidden_act)(linear(layer["mlp"]["fc1"], h))
        change = linear(layer["mlp"]["fc2"], inputs["fc2"])
    else:
        change, read["mlp"] = hooks.mlp(h, layer, extra)
    x = x + change
    return x if hooks.after is None else hooks.after(x, extra), inputs, read


def first_token_block(
    layer: Any,
    config: EncoderConfig,
    x: jax.Array,
    mask: jax.Array | None,
    hooks: Hooks,
    extra: Any,
) -> tuple[jax.Array, dict[str, Any]]:
    """A block that computes its first token alone.

    Args:
        layer: its parameters.
        config: sizes; static.
        x: [B, L, D], all tokens.
        mask: [B or 1, 1, L, L] bool, True where row may look at column; None: everywhere.
        hooks: replacements of its parts.
        extra: this block's part of `per_layer`, for the hooks.

    Returns:
        The first token after it, [B, 1, D], and what hooks read.
    """
    read: dict[str, Any] = {}
    h = layer_norm(layer["layer_norm1"], x, config.layer_norm_eps)
    # A hook of the MLP may read all tokens, so they all must have attended.
    rows = 1 if hooks.mlp is None else x.shape[1]
    if hooks.attention is None:
        change = linear(
            layer["self_attn"]["out_proj"], attend(layer["self_attn"], config, h, mask, rows)
        )
    else:
        change, read["attention"] = hooks.attention(h, layer, extra)
    x = x[:, :rows] + change[:, :rows]
    h = layer_norm(layer["layer_norm2"], x, config.layer_norm_eps)
    if hooks.mlp is None:
        change = mlp(layer["mlp"], config, h)
    else:
        change, read["mlp"] = (hooks.last_mlp or hooks.mlp)(h, layer, extra)
    return x[:, :1] + change[:, :1], read


def self_attention(
    params: Any, config: EncoderConfig, h: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v of every head, put together by `out_proj`.

    Args:
        params: of the four maps.
        config: the number of heads; static.
        h: [B, L, D].
        mask: [B or 1, 1, L, L] bool, True where row may look at column; None: everywhere.

    Returns:
        [B, L, D].
    """
    return linear(params["out_proj"], attend(params, config, h, mask))


def attend(
    params: Any,
    config: EncoderConfig,
    h: jax.Array,
    mask: jax.Array | None,
    rows: int | None = None,
) -> jax.Array:
    """The heads' outputs side by side, before `out_proj`.

    Args:
        params: of the maps to queries, keys and values.
        config: the number of heads; static.
        h: [B, L, D].
        mask: [B or 1, 1, L, L] bool, True where row may look at column; None: everywhere.
        rows: how many of the first tokens ask; None: all.

    Returns:
        [B, L or rows, D]; the softmax is in float32 at least.
    """
    heads = config.num_attention_heads

    def split(name: str, h: jax.Array) -> jax.Array:
        y = linear(params[name], h)
        return y.reshape(*y.shape[:-1], heads, y.shape[-1] // heads)  # [B, L, H, d]

    q, k, v = split("q_proj", h[:, :rows]), split("k_proj", h), split("v_proj", h)
    visible = None if mask is None else mask[:, :, :rows]
    found = scaled_attention(q, k, v, mask=visible)
    return found.reshape(*q.shape[:2], heads * v.shape[-1])  # [B, L, D]


def mlp(params: Any, config: EncoderConfig, h: jax.Array) -> jax.Array:
    """W_2 act(W_1 h + b_1) + b_2."""
    return linear(params["fc2"], activation(config.hidden_act)(linear(params["fc1"], h)))


def linear(params: Any, x: jax.Array) -> jax.Array:
    """x W^T + b of {"weight" [out, in], "bias" [out]}."""
    return rows_product(x, params["weight"].T) + params["bias"]


def layer_norm(params: Any, x: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias; statistics in float32 at least."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centered = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    normal = (centered * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)
    return normal * params["weight"] + params["bias"]


def activation(name: Activation) -> Callable[[jax.Array], jax.Array]:
    """u sigmoid(1.702 u), or the exact Gaussian error linear unit."""
    if name == "quick_gelu":
        return lambda u: u * jax.nn.sigmoid(1.702 * u)
    return gelu


def init(key: jax.Array, config: VisionConfig) -> Any:
    """Random parameters as CLIP draws them: normal, scaled by width and depth."""
    keys = jax.random.split(key, 4)
    width = config.hidden_size

    def normal(key: jax.Array, shape: tuple[int, ...], std: float) -> jax.Array:
        return std * jax.random.normal(key, shape)

    patch = (width, config.num_channels, config.patch_size, config.patch_size)
    return {
        "embeddings": {
            "class_embedding": normal(keys[0], (width,), width**-0.5),
            "patch_embedding": {"weight": normal(keys[1], patch, 0.02)},
            "position_embedding": {"weight": normal(keys[2], (config.tokens, width), 0.02)},
        },
        "pre_layrnorm": init_norm(width),
        "encoder": {
            "layers": init_layers(
                keys[3], config.num_hidden_layers, width, config.intermediate_size
            )
        },
        "post_layernorm": init_norm(width),
    }


def init_layers(key: jax.Array, layers: int, width: int, inner: int) -> Any:
    """Fresh stacked blocks: input maps with std (2 N D)^-1/2, output maps D^-1/2, biases 0.

    Args:
        key: [] typed random key.
        layers: N.
        width: D.
        inner: hidden units of the MLP.

    Returns:
        Leaves [N, ...] in float32.
    """
    names = {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), (width, width)),
        "fc1": (inner, width),
        "fc2": (width, inner),
    }
    std = {"out_proj": width**-0.5, "fc1": (2 * width) ** -0.5}
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))

    def one(name: str) -> Any:
        scale = std.get(name, (2 * layers * width) ** -0.5)
        weight = scale * jax.random.normal(keys[name], (layers, *names[name]))
        return {"weight": weight, "bias": jnp.zeros((layers, names[name][0]))}

    norm = jax.tree.map(lambda leaf: jnp.tile(leaf, (layers, 1)), init_norm(width))
    return {
        "layer_norm1": norm,
        "self_attn": {name: one(name) for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
        "layer_norm2": norm,
        "mlp": {"fc1": one("fc1"), "fc2": one("fc2")},
    }


def init_norm(width: int) -> Any:
    """A norm that does nothing: weight 1, bias 0."""
    return {"weight": jnp.ones(width), "bias": jnp.zeros(width)}

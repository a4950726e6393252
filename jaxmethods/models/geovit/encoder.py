r"""A vision transformer over patches of any sensor, with or without most of its patches.

    x = [class; registers; embed(patches) + positions],    x <- block(x) ...,    x <- LN(x)

The blocks are those of `models.clip.vit`, whose parameters are stacked and scanned; with `keep`,
the pixels of kept patches are gathered before they are embedded, so that a masked autoencoder never
embeds what it hides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.models.clip import vit
from jaxmethods.models.geovit import patches, positions, wavelength
from jaxmethods.models.geovit.config import EncoderConfig, Pooling


class Context(NamedTuple):
    """What is known of images beside their pixels."""

    gsd: jax.Array | None = None
    """[B] meters of a pixel, of the image that the encoder sees."""
    wavelengths: jax.Array | None = None
    """[C] micrometers."""
    timestamps: jax.Array | None = None
    """[B, T, 3] year - 2002, month - 1, hour."""


NOTHING = Context()


class Encoded(NamedTuple):
    """What the encoder says of images."""

    cls: jax.Array
    """[B, D]"""
    patches: jax.Array
    """[B, T, D], or [B, K, D] of the patches that were kept."""
    hidden: jax.Array | None = None
    """[N + 1, B, 1 + R + T, D] before the first block and after every one, where it was asked."""

    @property
    def sequence(self) -> jax.Array:
        """[B, 1 + T, D]: class token and patches."""
        return jnp.concatenate([self.cls[:, None], self.patches], axis=1)


def encode(
    params: Any,
    config: EncoderConfig,
    images: jax.Array,
    context: Context = NOTHING,
    *,
    keep: jax.Array | None = None,
    sensor: str | None = None,
    taps: Sequence[str] = (),
    remat: bool = False,
) -> Encoded:
    """Encodes images, or a part of their patches.

    Args:
        params: the tree that `init` makes; its type is that of the computation.
        config: of the encoder; static.
        images: [B, H, W, C] floating, normalized; [B, T, H, W, C] with frames.
        context: what the config's embedding and positions need.
        keep: [B, K] indices of the tokens that are encoded, in this order; None: all.
        sensor: which embedding of `per_sensor`; static.
        taps: "hidden" for the residual stream of every block; static.
        remat: compute blocks again in the backward pass.

    Returns:
        Class token and patch tokens after the final norm.

    Raises:
        ValueError: images of another shape, a sensor that isn't known, or context that is missing.
    """
    x = embed(params, config, images, context, keep=keep, sensor=sensor)
    encoded = vit.encode(params["blocks"], config, x, taps=taps, remat=remat)
    last = encoded.last
    if not config.norm_after_pooling:
        last = vit.layer_norm(params["norm"], last, config.layer_norm_eps)
    return Encoded(last[:, 0], last[:, 1 + config.registers :], encoded.hidden)


def embed(
    params: Any,
    config: EncoderConfig,
    images: jax.Array,
    context: Context = NOTHING,
    *,
    keep: jax.Array | None = None,
    sensor: str | None = None,
) -> jax.Array:
    """Tokens with their positions, before the first block.

    Args:
        params: see `encode`.
        config: of the encoder; static.
        images: [B, H, W, C], or [B, T, H, W, C] with frames.
        context: what the config's embedding and positions need.
        keep: [B, K] indices of tokens; None: all.
        sensor: which embedding of `per_sensor`; static.

    Returns:
        [B, 1 + R + K, D].
    """
    kernels, config = _kernels(params, config, context, sensor)
    rows = patches.cut(config, images)
    table = position_table(params, config, context)
    if keep is not None and len(rows) == 1:
        tokens = patches.embed(kernels, [patches.gather(rows[0], keep)])
    else:
        tokens = patches.embed(kernels, rows)
        tokens = tokens if keep is None else patches.gather(tokens, keep)
    table = jnp.asarray(table, tokens.dtype)
    own = table[..., 1:, :]
    if keep is not None:
        own = patches.gather(jnp.broadcast_to(own, (len(images), *own.shape[-2:])), keep)
    first = params["cls_token"][None, None]
    if config.positions not in ("group", "temporal"):
        first = first + table[..., :1, :]
    first = jnp.broadcast_to(first, (len(images), 1, config.width)).astype(tokens.dtype)
    parts = [first, tokens + own]
    if config.registers:
        registers = params["registers"]
        parts.insert(1, jnp.broadcast_to(registers, (len(images), *registers.shape)))
    return jnp.concatenate(parts, axis=1)


def position_table(params: Any, config: EncoderConfig, context: Context = NOTHING) -> Any:
    """The positions of class token and tokens, [1 + T, D] or [B, 1 + T, D].

    Args:
        params: whose "positions" are taken where they are `learned`.
        config: of the encoder; static.
        context: with ground sampling distances or dates where positions need them.

    Returns:
        The table, float32 at least.

    Raises:
        ValueError: ground sampling distance or dates are missing: there is no default for them.
    """
    width, grid, kind = config.width, config.grid, config.positions
    if kind == "learned":
        return params["positions"]
    if kind == "gsd":
        if context.gsd is None:
            raise ValueError(
                "gsd: expected meters of a pixel for every image [B], got none; a model with "
                "positions on the ground has no default for it"
            )
        return positions.ground(width, grid, context.gsd)
    if kind == "group":
        return positions.groups(width, grid, len(config.groups), config.channel_width)
    if kind == "temporal":
        if context.timestamps is None:
            raise ValueError("timestamps: expected [B, T, 3] (year - 2002, month - 1, hour)")
        return positions.dates(width, grid, context.timestamps, config.date_width)
    if kind == "tubelet":
        return positions.frames(width, grid, config.frames)
    return positions.plain(width, grid)


def pool(params: Any, config: EncoderConfig, encoded: Encoded, how: Pooling = "cls") -> jax.Array:
    """Features of images.

    Args:
        params: of the encoder, for a norm behind the pooling.
        config: of the encoder; static.
        encoded: of `encode`.
        how: the class token, the mean of the patch tokens, both side by side, or the mean beside
            the deviation over places, which is what random convolutions are judged by; static.

    Returns:
        [B, D], or [B, 2 D] of two.
    """
    made = {
        "cls": lambda: encoded.cls,
        "mean": lambda: jnp.mean(encoded.patches, axis=1),
        "std": lambda: jnp.std(encoded.patches, axis=1),
    }
    pooled = [made[name]() for name in how.split("+")]
    if config.norm_after_pooling:
        pooled = [vit.layer_norm(params["norm"], own, config.layer_norm_eps) for own in pooled]
    return jnp.concatenate(pooled, axis=-1)


def init(key: jax.Array, config: EncoderConfig) -> Any:
    """Fresh parameters as MAE draws them: uniform (Xavier) maps, zero biases, tokens N(0, 0.02).

    Args:
        key: [] typed random key.
        config: of the encoder.

    Returns:
        {"patch_embed", "cls_token", "blocks", "norm"} and, where the config has them, "positions"
        and "registers"; float32.
    """
    keys = jax.random.split(key, 5)
    params: dict[str, Any] = {
        "patch_embed": _init_embedding(keys[0], config),
        "cls_token": 0.02 * jax.random.normal(keys[1], (config.width,)),
        "blocks": init_blocks(keys[2], config.depth, config.width, config.inner),
        "norm": vit.init_norm(config.width),
    }
    if config.positions == "learned":
        params["positions"] = 0.02 * jax.random.normal(keys[3], (1 + config.tokens, config.width))
    if config.registers:
        params["registers"] = 0.02 * jax.random.normal(keys[4], (config.registers, config.width))
    return params


def init_blocks(key: jax.Array, depth: int, width: int, inner: int) -> Any:
    """Fresh stacked blocks, with uniform (Xavier) maps.

    Queries, keys and values are drawn as one map of [3 D, D], as timm holds them.

    Args:
        key: [] typed random key.
        depth: N.
        width: D.
        inner: hidden units of the MLP.

    Returns:
        Leaves [N, ...] in float32.
    """
    keys = jax.random.split(key, 4)
    shapes = {"qkv": (3 * width, width), "out_proj": (width, width)}
    shapes |= {"fc1": (inner, width), "fc2": (width, inner)}

    def draw(key: jax.Array, shape: tuple[int, int]) -> dict[str, jax.Array]:
        bound = (6.0 / sum(shape)) ** 0.5
        weight = jax.random.uniform(key, (depth, *shape), minval=-bound, maxval=bound)
        return {"weight": weight, "bias": jnp.zeros((depth, shape[0]))}

    drawn = {name: draw(own, shapes[name]) for own, name in zip(keys, shapes, strict=True)}
    qkv = jax.tree.map(lambda leaf: jnp.split(leaf, 3, axis=1), drawn["qkv"])
    attention = {
        name: {"weight": qkv["weight"][place], "bias": qkv["bias"][place]}
        for place, name in enumerate(("q_proj", "k_proj", "v_proj"))
    }
    norm = jax.tree.map(lambda leaf: jnp.tile(leaf, (depth, 1)), vit.init_norm(width))
    return {
        "layer_norm1": norm,
        "self_attn": attention | {"out_proj": drawn["out_proj"]},
        "layer_norm2": norm,
        "mlp": {"fc1": drawn["fc1"], "fc2": drawn["fc2"]},
    }


def _kernels(
    params: Any, config: EncoderConfig, context: Context, sensor: str | None
) -> tuple[Any, EncoderConfig]:
    """The embedding to use, and a config that says how many bands it takes."""
    if config.embedding == "wavelength":
        if context.wavelengths is None:
            raise ValueError("wavelengths: expected [C] micrometers, got none")
        fixed, plain = wavelength.fixed_bands(params, config, context.wavelengths)
        return fixed["patch_embed"], plain
    if config.embedding != "per_sensor":
        return params["patch_embed"], config
    if sensor not in dict(config.sensors):
        known = ", ".join(name for name, _ in config.sensors)
        raise ValueError(f"sensor: expected one of {known}, got {sensor!r}")
    update = {"embedding": "conv", "sensors": (), "channels": dict(config.sensors)[sensor]}
    return params["patch_embed"][sensor], config.model_copy(update=update)


def _init_embedding(key: jax.Array, config: EncoderConfig) -> Any:
    if config.embedding == "wavelength":
        return wavelength.init_generator(key, config)

    def draw(key: jax.Array, channels: int) -> dict[str, jax.Array]:
        shape = (config.width, channels, config.patch, config.patch)
        bound = (6.0 / (config.width + channels * config.patch**2)) ** 0.5
        weight = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        return {"weight": weight, "bias": jnp.zeros(config.width)}

    if config.embedding == "grouped":
        keys = jax.random.split(key, len(config.groups))
        return {
            str(place): draw(own, len(group))
            for place, (own, group) in enumerate(zip(keys, config.groups, strict=True))
        }
    if config.embedding == "per_sensor":
        keys = jax.random.split(key, len(config.sensors))
        return {
            name: draw(own, channels)
            for own, (name, channels) in zip(keys, config.sensors, strict=True)
        }
    return draw(key, config.channels)


def at_size(params: Any, config: EncoderConfig, image_size: int) -> tuple[Any, EncoderConfig]:
    """The encoder for images of another size; a table of positions is resized (bicubic).

    Args:
        params: of the encoder.
        config: its config.
        image_size: pixels along a side.

    Returns:
        Parameters and config.

    Raises:
        ValueError: a table of several groups or frames, or a size that the patch doesn't divide.
    """
    changed = EncoderConfig.model_validate(config.model_dump() | {"image_size": image_size})
    if config.positions != "learned":
        return params, changed
    copies = config.tokens // config.grid**2
    if copies > 1:
        raise ValueError(
            f"positions: expected a table of one grid, got one of {copies} groups or frames"
        )
    table = positions.resize_positions(params["positions"], changed.grid)
    return params | {"positions": table}, changed

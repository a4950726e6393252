r"""Quantized spaces alignment: states, or actions, of any size in one bounded space.

    z_e = E(x),  z_q = nearest codes,  z = z_e + sg(z_q - z_e),  x' = D(z)
    L = |x - x'|^2 + |sg(z_e) - z_q|^2 + beta |sg(z_q) - z_e|^2,    |e| <= rho

Every task has a module for its states and one for its actions, which share nothing. After training
it is frozen, and the planner sees z_q. The other kinds are ablations: an autoencoder without codes
(`ae`), a variational one (`vae`), a fixed grid for a codebook (`fsq`, Mentzer et al. 2023, arXiv
2309.15505), zeros behind the values (`pad`), and the values themselves (`none`).

Hu et al., VQ-CD, arXiv 2410.15698, section 3.1. Modules for inputs of different sizes run in one
vmapped program: rows are padded with zeros to the largest size, the padded weights start at 0 and,
since nothing goes in and nothing is missed, stay there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.vqcd.config import AlignmentConfig
from jaxmethods.vqcd.spaces.codebook import nearest
from jaxmethods.vqcd.spaces.perceptron import init_perceptron, perceptron
from jaxmethods.vqcd.types import Params

ROWS_AT_ONCE = 4096
"""How many rows `align_rows` encodes in one product."""


class Encoded(NamedTuple):
    """Rows in the common space."""

    z: jax.Array
    """[B, channels] what the planner sees."""
    index: jax.Array | None
    """[B, n] int32 codes; None where there are none."""


class Losses(NamedTuple):
    """Terms of a module's loss, each []; 0 where the kind has no such term."""

    reconstruction: jax.Array
    codebook: jax.Array
    commitment: jax.Array
    divergence: jax.Array
    """KL from the standard normal, of `vae`."""


class Forward(NamedTuple):
    """What a training step needs of a forward pass."""

    losses: Losses
    encoded: jax.Array
    """[B, n, d] z_e"""
    index: jax.Array
    """[B, n] int32 codes, 0 where there are none."""


def init(
    key: jax.Array, config: AlignmentConfig, padded: int, size: jax.Array | int | None = None
) -> Params:
    """Draws a module.

    Args:
        key: [] typed key.
        config: kind and sizes; static.
        padded: width of the rows it will be given; static.
        size: [] how many of these columns are real; may be traced. None: all.

    Returns:
        {"encoder", "decoder", "codebook"}; what the kind doesn't have is not there. The numbers of
        the real columns don't depend on `padded`.
    """
    if not config.trained:
        return {}
    encoder_key, decoder_key, codebook_key = jax.random.split(key, 3)
    outputs = config.channels * (2 if config.kind == "vae" else 1)
    encoder = init_perceptron(encoder_key, (padded, *config.encoder, outputs))
    decoder = init_perceptron(decoder_key, (config.channels, *config.decoder, padded))
    size = padded if size is None else size
    first, last = encoder["dense0"], decoder[f"dense{len(config.decoder)}"]
    rows = _padded_rows(jax.random.fold_in(encoder_key, 1 << 31), first["weight"].shape, size)
    bound = jnp.sqrt(jnp.asarray(size, jnp.float32))
    first["weight"] = rows / bound
    first["bias"] = _uniform(jax.random.fold_in(encoder_key, (1 << 31) + 1), first["bias"].shape)
    first["bias"] = first["bias"] / bound
    width = last["weight"].shape[0]
    columns = _padded_rows(
        jax.random.fold_in(decoder_key, 1 << 31), (padded, width + 1), size
    ) / jnp.sqrt(float(width))
    last["weight"], last["bias"] = columns[:, :-1].T, columns[:, -1]  # [in, out], [out]
    params = {"encoder": encoder, "decoder": decoder}
    if config.kind == "vq":
        bound = 1.0 / config.codes
        shape = (config.codes, config.width)
        params["codebook"] = bound * _uniform(codebook_key, shape)
    return params


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def _padded_rows(key: jax.Array, shape: tuple[int, int], size: jax.Array | int) -> jax.Array:
    """U(-1, 1) in rows below `size`, each drawn by a key of its own, and 0 behind them."""
    places = jnp.arange(shape[0])
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
    rows = jax.vmap(lambda key: _uniform(key, (shape[1],)))(keys)
    return jnp.where((places < size)[:, None], rows, 0.0)


def _activation(config: AlignmentConfig) -> Any:
    return jax.nn.relu if config.activation == "relu" else jax.nn.leaky_relu


def encoder_output(params: Params, config: AlignmentConfig, x: jax.Array) -> jax.Array:
    """What comes out of the encoder, before codes or draws; of `vae` twice as wide."""
    return perceptron(params["encoder"], x, _activation(config))


def quantize(params: Params, config: AlignmentConfig, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes of encoded vectors.

    Args:
        params: of `vq` the codebook; of `fsq` nothing is needed.
        config: static.
        z: [..., d], of `fsq` before its bound.

    Returns:
        Entries [..., d] and their numbers [...] int32.
    """
    if config.kind == "vq":
        index = nearest(params["codebook"], z)
        return params["codebook"][index], index
    level = _grid_level(config, jnp.tanh(z))
    powers = config.levels ** jnp.arange(config.width)
    return _grid_values(config, level), (level * powers).sum(-1)


def nearest_codes(params: Params, config: AlignmentConfig, values: jax.Array) -> jax.Array:
    """The codes [..., d] nearest to values [..., d] of the common space; of codes, themselves.

    NaN stays, which has no nearest code.

    Args:
        params: of `vq` the codebook; of `fsq` nothing is needed.
        config: static.
        values: [..., d], of `fsq` behind its bound, other than for `quantize`.

    Returns:
        Entries [..., d].
    """
    if config.kind == "vq":
        codes = params["codebook"][nearest(params["codebook"], values)]
    else:
        bounded = jnp.clip(values / config.rho, -1.0, 1.0)
        codes = _grid_values(config, _grid_level(config, bounded))
    return jnp.where(jnp.isnan(values), values, codes)


def _grid_level(config: AlignmentConfig, bounded: jax.Array) -> jax.Array:
    """The level, from 0 on, that is nearest to numbers in [-1, 1], int32."""
    return jnp.round((bounded + 1.0) / 2.0 * (config.levels - 1)).astype(jnp.int32)


def _grid_values(config: AlignmentConfig, level: jax.Array) -> jax.Array:
    return config.rho * (2.0 * level / (config.levels - 1) - 1.0)


def table(params: Params, config: AlignmentConfig) -> jax.Array | None:
    """[codes, d] what each code stands for; None for kinds without codes."""
    if config.kind == "vq":
        return params["codebook"]
    if config.kind == "fsq":
        number = jnp.arange(config.levels**config.width)[:, None]
        level = number // config.levels ** jnp.arange(config.width) % config.levels
        return _grid_values(config, level)
    return None


def encode(params: Params, config: AlignmentConfig, x: jax.Array) -> Encoded:
    """Normalized rows [B, D] in the common space: codes, or the mean of `vae`.

    Raises:
        ValueError: `pad` or `none` with rows wider than, or not as wide as, `padded_size`.
    """
    if not config.trained:
        missing = config.channels - x.shape[-1]
        if missing < 0 or (missing and config.kind == "none"):
            raise ValueError(
                f"x: expected {config.channels} columns with {config.kind!r}, got {x.shape[-1]}"
            )
        return Encoded(jnp.pad(x, ((0, 0), (0, missing))), None)
    z = encoder_output(params, config, x)[..., : config.channels]
    if not config.discrete:
        return Encoded(z, None)
    codes, index = quantize(params, config, _latents(config, z))
    return Encoded(codes.reshape(z.shape), index)  # [B, C], [B, n]


def _latents(config: AlignmentConfig, z: jax.Array) -> jax.Array:
    return z.reshape(*z.shape[:-1], config.latents, config.width)  # [B, n, d]


def decode(params: Params, config: AlignmentConfig, z: jax.Array, size: int) -> jax.Array:
    """Leads back from the common space.

    Args:
        params: a module.
        config: static.
        z: [..., channels]; need not be codes.
        size: columns of the task's rows; static.

    Returns:
        [..., size] normalized rows.
    """
    if not config.trained:
        return z[..., :size]
    return perceptron(params["decoder"], z, _activation(config))[..., :size]


def loss(
    params: Params,
    config: AlignmentConfig,
    x: jax.Array,
    key: jax.Array | None = None,
    size: jax.Array | int | None = None,
) -> tuple[jax.Array, Forward]:
    """The loss of a module.

    Args:
        params: those of `init`.
        config: static; a kind that is trained.
        x: [B, D] normalized rows, padded with zeros.
        key: [] typed key of the noise of `vae`; other kinds need none.
        size: [] how many columns are real; None: all.

    Returns:
        The loss [] and its terms. Gradients: of the reconstruction to the decoder and straight
        through the codes to the encoder, of the codebook term to used codes alone.
    """
    rows, size = x.shape[0], x.shape[-1] if size is None else size
    output = encoder_output(params, config, x)
    encoded, zero = _latents(config, output[..., : config.channels]), jnp.zeros(())
    index = jnp.zeros(encoded.shape[:-1], jnp.int32)
    codebook = commitment = divergence = zero
    z = encoded
    if config.kind == "vae":
        if key is None:
            raise ValueError("key: expected one with kind = 'vae', whose latents are drawn")
        log_variance = _latents(config, output[..., config.channels :])
        noise = jax.random.normal(key, encoded.shape, encoded.dtype)
        z = encoded + jnp.exp(0.5 * log_variance) * noise
        kl = 0.5 * (jnp.square(encoded) + jnp.exp(log_variance) - 1.0 - log_variance)
        divergence = _reduced(config, kl, rows, config.channels)
    elif config.kind == "vq":
        codes, index = quantize(params, config, encoded)
        codebook_error = jnp.square(jax.lax.stop_gradient(encoded) - codes)
        commitment_error = jnp.square(jax.lax.stop_gradient(codes) - encoded)
        codebook = _reduced(config, codebook_error, rows, config.channels)
        commitment = _reduced(config, commitment_error, rows, config.channels)
        z = encoded + jax.lax.stop_gradient(codes - encoded)
    elif config.kind == "fsq":
        bounded = config.rho * jnp.tanh(encoded)
        codes, index = quantize(params, config, encoded)
        z = bounded + jax.lax.stop_gradient(codes - bounded)
    restored = decode(params, config, z.reshape(rows, -1), x.shape[-1])
    reconstruction = _reduced(config, jnp.square(x - restored), rows, size)
    losses = Losses(reconstruction, codebook, commitment, divergence)
    total = reconstruction + config.beta * commitment + config.kl_weight * divergence
    if config.update == "gradient":
        total = total + codebook
    return total, Forward(losses, encoded, index)


def _reduced(
    config: AlignmentConfig, errors: jax.Array, rows: int, features: jax.Array | int
) -> jax.Array:
    """Mean over all elements, or sum over features and mean over rows."""
    return errors.sum() / (rows * (features if config.reduction == "mean" else 1))


def align_rows(
    params: Params, config: AlignmentConfig, x: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """All of a task's normalized rows for `TaskData`.

    Args:
        params: a trained module.
        config: static.
        x: [N, D].

    Returns:
        int16 codes [N, n] and what they stand for [codes, d], or float32 rows [N, channels] and
        None.
    """

    def one(row: jax.Array) -> jax.Array:
        found = encode(params, config, row[None])
        if found.index is None:
            return found.z[0].astype(jnp.float32)
        return found.index[0].astype(jnp.int16)

    return jax.lax.map(one, x, batch_size=ROWS_AT_ONCE), table(params, config)


def feature_difference(
    key: jax.Array, first: jax.Array, second: jax.Array, pairs: int = 4096
) -> jax.Array:
    """How far apart two tasks' aligned vectors are (table 2 of the paper; the definition is ours).

    Args:
        key: [] typed key.
        first: [N, C] of one task.
        second: [M, C] of the other.
        pairs: how many are drawn; static.

    Returns:
        [] the mean distance of random pairs.
    """
    first_key, second_key = jax.random.split(key)
    some = first[jax.random.randint(first_key, (pairs,), 0, first.shape[0])]
    others = second[jax.random.randint(second_key, (pairs,), 0, second.shape[0])]
    return jnp.linalg.norm(some - others, axis=-1).mean()

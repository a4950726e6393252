"""The features and tokens of a run's images: of encoders, and of what is simpler."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.models.geovit import Context, EncoderConfig, encode, pool
from jaxmethods.models.geovit.config import Pooling
from jaxmethods.rsfm.config import Run
from jaxmethods.rsfm.evaluation import baselines
from jaxmethods.rsfm.recipes.material import PARTS, Material

FIXED = ("mean_std", "imagestats", "random_convolutions")
"""Features without an encoder."""
ENCODERS = ("random_encoder", "mae")
"""The last is the pretrained one, whatever it learned from."""


def shown(run: Run, name: str) -> str:
    """What features are called in tables: the pretrained encoder by its objective."""
    return run.model.objective if name == "mae" else name


def shown_seed(run: Run, name: str) -> str:
    """The same of a name with its seed, "mae-0", in words."""
    own, dash, seed = name.partition("-")
    return f"{shown(run, own)}{dash}{seed}".replace("_", " ")


def fixed_features(name: str, run: Run, material: Material) -> dict[str, np.ndarray]:
    """Features of all parts without an encoder.

    Args:
        name: of `FIXED`.
        run: the config.
        material: the images.

    Returns:
        Part -> [n, D] float32.
    """
    if name != "random_convolutions":
        make = baselines.imagestats if name == "imagestats" else baselines.mean_and_std
        return {part: _in_batches(jax.jit(make), material.scaled(part), 500) for part in PARTS}
    images = {part: material.normalized(part) for part in PARTS}
    number = run.evaluation.random_features
    filters = baselines.random_filters(
        jax.random.key(run.seed), jnp.asarray(images["train"]), number
    )
    apply = partial(jax.jit(baselines.random_convolutions), filters)
    return {part: _in_batches(apply, own, 500) for part, own in images.items()}


def encoder_features(
    params: Any, config: EncoderConfig, run: Run, material: Material
) -> dict[str, np.ndarray]:
    """Features of all parts by an encoder.

    Args:
        params: of the encoder.
        config: of the encoder.
        run: the config.
        material: the images.

    Returns:
        "PART.POOLING" -> [n, D] float32.
    """
    poolings = run.evaluation.poolings
    widths = [config.width * len(how.split("+")) for how in poolings]
    found = {}
    for part in PARTS:
        apply = partial(_pooled, config=config, poolings=poolings, params=params, gsd=material.gsd)
        beside = _in_batches(apply, material.normalized(part), run.evaluation.batch)
        pieces = np.split(beside, np.cumsum(widths)[:-1], axis=1)
        found |= {f"{part}.{how}": one for how, one in zip(poolings, pieces, strict=True)}
    return found


def encoder_tokens(
    params: Any, config: EncoderConfig, run: Run, images: np.ndarray, gsd: float | None
) -> np.ndarray:
    """Patch tokens [n, L, D] float32 of normalized images [n, H, W, C].

    Args:
        params: of the encoder.
        config: of the encoder.
        run: the config.
        images: normalized.
        gsd: meters of a pixel, or None.

    Returns:
        The tokens after the last norm.
    """
    apply = partial(_tokens, config=config, params=params, gsd=gsd)
    return _in_batches(apply, images, run.evaluation.batch)


@partial(jax.jit, static_argnames=("config", "poolings", "gsd"))
def _pooled(
    images: jax.Array,
    *,
    params: Any,
    config: EncoderConfig,
    poolings: tuple[Pooling, ...],
    gsd: float | None,
) -> jax.Array:
    """All poolings of one pass, side by side."""
    encoded = encode(params, config, images, _gsd_of(images, gsd))
    return jnp.concatenate([pool(params, config, encoded, how) for how in poolings], axis=-1)


@partial(jax.jit, static_argnames=("config", "gsd"))
def _tokens(
    images: jax.Array, *, params: Any, config: EncoderConfig, gsd: float | None
) -> jax.Array:
    return encode(params, config, images, _gsd_of(images, gsd)).patches


def _gsd_of(images: jax.Array, gsd: float | None) -> Context:
    return Context(gsd=None if gsd is None else jnp.full(len(images), gsd))


def _in_batches(apply: Any, images: np.ndarray, size: int) -> np.ndarray:
    """All images through one program; the last batch is filled up with its last image."""
    found = []
    size = min(size, len(images))
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        full = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
        found.append(np.asarray(apply(jnp.asarray(full)))[: len(batch)])
    return np.concatenate(found)


def one_seed(results: Mapping[str, Any], stage: str, seed: int) -> Any:
    """A stage's result of one seed, on the host's device."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[seed]), results[stage])

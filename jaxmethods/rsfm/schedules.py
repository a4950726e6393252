r"""Rates and updates that the reference recipes train with.

    rate(e) = lr e / w                                                              e < w epochs
    rate(e) = lr_min + (lr - lr_min) (1 + cos(pi (e - w) / (E - w))) / 2            w <= e < E
    rate(e) = lr_min                                                                otherwise

He et al. 2022 (arXiv 2111.06377), appendix A; LARS is You et al. 2017 (arXiv 1708.03888) as MAE's
linear probe uses it; layer decay is BEiT's (arXiv 2106.08254).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def warmup_cosine(
    epoch: jax.Array, rate: Any, epochs: float, warmup: float, smallest: float = 0.0
) -> jax.Array:
    """The learning rate at a (fractional) epoch; the first step's is 0 where there is a warm-up.

    Args:
        epoch: e [...].
        rate: lr, the largest.
        epochs: E.
        warmup: w epochs.
        smallest: lr_min, of the end.

    Returns:
        [...] in the type of the epoch, float32 at least.
    """
    epoch = jnp.asarray(epoch)
    epoch = epoch.astype(jnp.promote_types(epoch.dtype, jnp.float32))
    # Behind the last epoch the cosine would rise again; without one behind the warm-up it is NaN.
    share = (epoch - warmup) / (epochs - warmup) if epochs > warmup else jnp.ones_like(epoch)
    turn = jnp.pi * jnp.clip(share, 0, 1)
    late = smallest + (rate - smallest) * 0.5 * (1 + jnp.cos(turn))
    return jnp.where(epoch < warmup, rate * epoch / max(warmup, 1e-12), late)


def layer_decay_scales(depth: int, decay: float = 0.75) -> np.ndarray:
    """What rates are multiplied with in fine-tuning: embedding, blocks 1 to N, head; [N + 2]."""
    return decay ** np.arange(depth + 1, -1, -1, dtype=float)


def lars_update(
    params: Any,
    gradient: Any,
    velocity: Any,
    rate: Any,
    weight_decay: Any = 0.0,
    momentum: float = 0.9,
    trust: float = 0.001,
) -> tuple[Any, Any]:
    """One step of LARS; vectors (biases, norms) have neither decay nor trust ratio.

    Args:
        params: what is updated.
        gradient: in their structure.
        velocity: in their structure, zeros at first.
        rate: [] learning rate.
        weight_decay: [].
        momentum: of the velocity.
        trust: the update's norm over the weights', before the rate.

    Returns:
        (params, velocity) after it.
    """

    def direction(own: jax.Array, slope: jax.Array) -> jax.Array:
        if own.ndim < 2:
            return slope
        slope = slope + weight_decay * own
        size, step = jnp.linalg.norm(own), jnp.linalg.norm(slope)
        known = (size > 0) & (step > 0)
        return slope * jnp.where(known, trust * size / jnp.where(known, step, 1), 1.0)

    moved = jax.tree.map(direction, params, gradient)
    velocity = jax.tree.map(lambda old, new: momentum * old + new, velocity, moved)
    return jax.tree.map(lambda own, fast: own - rate * fast, params, velocity), velocity

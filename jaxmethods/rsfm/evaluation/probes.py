"""MAE's linear probe of frozen features, a whole grid of settings in one program.

`probe_sgd` is the recipe of He et al. 2022, appendix A.1 (LARS, warm-up, cosine), for many rates,
decays and seeds. The optimum of a penalized probe is `numerics.linear_probe`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.linear_probe import Probe
from jaxmethods.rsfm.schedules import lars_update, warmup_cosine


class Grid(NamedTuple):
    """Settings of `probe_sgd`, one entry of each for every probe."""

    rate: jax.Array
    """[G], largest learning rate."""
    weight_decay: jax.Array
    """[G]"""
    seed: jax.Array
    """[G] integers: initial weights and order of batches."""


@compiled("classes", "epochs", "batch", "warmup", "optimizer")
def probe_sgd(
    features: jax.Array,
    labels: jax.Array,
    grid: Grid,
    *,
    classes: int,
    epochs: int = 90,
    batch: int = 512,
    warmup: int = 10,
    optimizer: str = "lars",
) -> Probe:
    """MAE's linear probe for every entry of a grid; each is what it would be alone.

    Args:
        features: [N, D], standardized.
        labels: [N] integers.
        grid: G settings.
        classes: C; static.
        epochs: static; the last batch of an epoch that isn't full is left out.
        batch: images of a step, at most N; static.
        warmup: epochs in which the rate grows; static.
        optimizer: "lars" or "sgd" (momentum 0.9); static.

    Returns:
        The classifiers; `objective` is the last epoch's mean loss, `gradient` NaN.

    Raises:
        ValueError: another optimizer.
    """
    if optimizer not in ("lars", "sgd"):
        raise ValueError(f"optimizer: expected lars or sgd, got {optimizer!r}")
    number, width = features.shape
    size = min(batch, number)
    steps = number // size
    # LARS with an infinite supply of trust is plain momentum; vectors have none of it anyway.
    trust = 0.001

    def loss(params: Any, rows: jax.Array) -> jax.Array:
        logits = features[rows] @ params["weight"] + params["bias"]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]))

    def solve(rate: jax.Array, decay: jax.Array, seed: jax.Array) -> Probe:
        start_key, order_key = jax.random.split(jax.random.key(seed))
        params = {
            "weight": 0.01 * jax.random.normal(start_key, (width, classes), features.dtype),
            "bias": jnp.zeros(classes, features.dtype),
        }

        def update(carry: Any, scanned: Any) -> Any:
            params, velocity = carry
            rows, place = scanned
            value, gradient = jax.value_and_grad(loss)(params, rows)
            now = warmup_cosine(place, rate, epochs, warmup).astype(features.dtype)
            if optimizer == "lars":
                moved = lars_update(params, gradient, velocity, now, decay, trust=trust)
            else:
                gradient["weight"] = gradient["weight"] + decay * params["weight"]
                velocity = jax.tree.map(lambda old, new: 0.9 * old + new, velocity, gradient)
                moved = jax.tree.map(lambda own, v: own - now * v, params, velocity), velocity
            return moved, value

        def epoch(carry: Any, index: jax.Array) -> Any:
            order = jax.random.permutation(jax.random.fold_in(order_key, index), number)
            rows = order[: steps * size].reshape(steps, size)
            places = index + jnp.arange(steps) / steps
            return jax.lax.scan(update, carry, (rows, places))

        carry = (params, jax.tree.map(jnp.zeros_like, params))
        (params, _), losses = jax.lax.scan(epoch, carry, jnp.arange(epochs))
        bias = params["bias"] - jnp.mean(params["bias"])
        nothing = jnp.full((), jnp.nan, features.dtype)
        count = jnp.asarray(epochs * steps, jnp.int32)
        return Probe(params["weight"], bias, jnp.mean(losses[-1]), nothing, count)

    return jax.vmap(solve)(grid.rate, grid.weight_decay, grid.seed)


def product(rates: Any, weight_decays: Any, seeds: Any) -> Grid:
    """The grid of all combinations, rate by rate.

    Args:
        rates: learning rates.
        weight_decays: of the weights.
        seeds: integers.

    Returns:
        G = rates x decays x seeds settings.
    """
    meshed = jnp.meshgrid(
        jnp.asarray(rates), jnp.asarray(weight_decays), jnp.asarray(seeds), indexing="ij"
    )
    return Grid(*(own.reshape(-1) for own in meshed))

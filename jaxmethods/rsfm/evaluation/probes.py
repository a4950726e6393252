"""MAE's linear probe of frozen features, a whole grid of settings in one program.

`probe_sgd` is the recipe of He et al. 2022, appendix A.1 (LARS, warm-up, cosine), for many rates,
decays and seeds. Settings with the same seed see the same batches, so that a batch is read once for
all of them: they are columns of one product. The optimum of a penalized probe is
`numerics.linear_probe`.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.linear_probe import Probe
from jaxmethods.numerics.precision import wide
from jaxmethods.rsfm.schedules import lars_update, warmup_cosine

TRUST = 0.001
"""The size of LARS's update over that of the weights, before the rate."""
MOMENTUM = 0.9
FEW = 32
"""Classes that are summed one by one."""


class Grid(NamedTuple):
    """Settings of `probe_sgd`: all pairs of a seed and of a rate with a decay."""

    rate: jax.Array
    """[G], largest learning rate."""
    weight_decay: jax.Array
    """[G]"""
    seed: jax.Array
    """[S] integers: initial weights and order of batches."""


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
        labels: [N] integers; an image whose label is no class, such as -1, doesn't count.
        grid: G settings and S seeds.
        classes: C; static.
        epochs: static; the last batch of an epoch that isn't full is left out.
        batch: images of a step, at most N; static.
        warmup: epochs in which the rate grows; static.
        optimizer: "lars" or "sgd" (momentum 0.9); static.

    Returns:
        G S classifiers, setting by setting; `objective` is the last epoch's mean loss, `gradient`
        NaN.

    Raises:
        ValueError: another optimizer, fewer than two classes.
    """
    if optimizer not in ("lars", "sgd"):
        raise ValueError(f"optimizer: expected lars or sgd, got {optimizer!r}")
    if classes < 2:
        raise ValueError(f"classes: expected at least 2, got {classes}")
    features = wide(features)
    decays = grid.weight_decay.astype(features.dtype)
    number, width = features.shape
    size = min(batch, number)
    steps = number // size
    settings = len(grid.rate)
    targets = jax.nn.one_hot(labels, classes, dtype=features.dtype)
    move = jax.vmap(_lars if optimizer == "lars" else _momentum, (1, 1, 1, 0, 0), 1)

    def solve(seed: jax.Array) -> Probe:
        start_key, order_key = jax.random.split(jax.random.key(seed))
        weight = 0.01 * jax.random.normal(start_key, (width, classes), features.dtype)
        params = {
            "weight": jnp.repeat(weight.T[:, None], settings, axis=1),  # [C, G, D]
            "bias": jnp.zeros((classes, settings), features.dtype),
        }

        def update(carry: Any, scanned: Any) -> Any:
            params, velocity = carry
            rows, place = scanned
            losses, gradient = _gradients(params, features[rows], targets[rows])
            rates = warmup_cosine(place, grid.rate, epochs, warmup).astype(features.dtype)
            return move(params, gradient, velocity, rates, decays), losses

        def epoch(carry: Any, index: jax.Array) -> Any:
            order = jax.random.permutation(jax.random.fold_in(order_key, index), number)
            rows = order[: steps * size].reshape(steps, size)
            places = index + jnp.arange(steps) / steps
            return jax.lax.scan(update, carry, (rows, places))

        carry = (params, jax.tree.map(jnp.zeros_like, params))
        (params, _), losses = jax.lax.scan(epoch, carry, jnp.arange(epochs))
        bias = params["bias"] - jnp.mean(params["bias"], axis=0)
        nothing = jnp.full(settings, jnp.nan, features.dtype)
        count = jnp.full(settings, epochs * steps, jnp.int32)
        weight = jnp.moveaxis(params["weight"], 0, 2)  # [G, D, C]
        return Probe(weight, bias.T, jnp.mean(losses[-1], axis=0), nothing, count)

    found = jax.lax.map(solve, grid.seed)
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), found)


def _gradients(params: Any, rows: jax.Array, targets: jax.Array) -> tuple[jax.Array, Any]:
    """All classifiers' [G] mean cross-entropies and slopes, by two products with the same rows.

    A softmax knows only differences of logits, and its slopes sum to zero over the classes: both
    products leave the last class out. Classes are the first axis and images the last one, so that
    neither product transposes and what is summed over classes are whole matrices.
    """
    number, (classes, settings, width) = len(rows), params["weight"].shape
    own = jax.tree.map(lambda leaf: leaf[:-1] - leaf[-1:], params)
    said = (own["weight"].reshape(-1, width) @ rows.T).reshape(classes - 1, settings, number)
    hits = _terms(targets.T[:-1, None])
    there = jnp.sum(targets, axis=1)  # 0 of an image without a class
    weight = there / jnp.maximum(jnp.sum(there), 1)
    pairs = zip(_terms(said), _terms(own["bias"][..., None]), strict=True)
    logits = [term + bias for term, bias in pairs]
    largest = reduce(jnp.maximum, _whole(jnp.max, logits), jnp.zeros((), said.dtype))
    powers = [jnp.exp(term - largest) for term in logits]
    total = jnp.exp(-largest) + _sum(powers)
    truth = _sum([term * hit for term, hit in zip(logits, hits, strict=True)])
    losses = jnp.sum(weight * (largest + jnp.log(total) - truth), axis=-1)
    share = weight / total
    pairs = zip(powers, hits, strict=True)
    wrong = jnp.stack([power * share - hit * weight for power, hit in pairs])
    wrong = wrong.reshape(classes - 1, settings, number)
    slope = (wrong.reshape(-1, number) @ rows).reshape(classes - 1, settings, width)
    slopes = {"weight": slope, "bias": jnp.sum(wrong, axis=-1)}

    def complete(others: jax.Array) -> jax.Array:
        return jnp.append(others, -_sum(_terms(others))[None], axis=0)

    return losses, jax.tree.map(complete, slopes)


def _terms(stacked: jax.Array) -> list[jax.Array]:
    """Few classes one by one, which XLA fuses on CPU (sums over an axis it does not), or all."""
    return list(stacked) if 1 < len(stacked) < FEW else [stacked]


def _whole(over: Any, terms: list[jax.Array]) -> list[jax.Array]:
    return terms if len(terms) > 1 else [over(terms[0], axis=0)]


def _sum(terms: list[jax.Array]) -> jax.Array:
    return reduce(jnp.add, _whole(jnp.sum, terms))


def _lars(params: Any, gradient: Any, velocity: Any, rate: Any, decay: Any) -> tuple[Any, Any]:
    return lars_update(params, gradient, velocity, rate, decay, momentum=MOMENTUM, trust=TRUST)


def _momentum(params: Any, gradient: Any, velocity: Any, rate: Any, decay: Any) -> tuple[Any, Any]:
    gradient = gradient | {"weight": gradient["weight"] + decay * params["weight"]}
    velocity = jax.tree.map(lambda old, new: MOMENTUM * old + new, velocity, gradient)
    return jax.tree.map(lambda own, fast: own - rate * fast, params, velocity), velocity


def product(rates: Any, weight_decays: Any, seeds: Any) -> Grid:
    """The grid of all combinations, rate by rate.

    Args:
        rates: learning rates.
        weight_decays: of the weights.
        seeds: integers.

    Returns:
        G = rates x decays settings and S seeds.
    """
    own, decays = jnp.meshgrid(jnp.asarray(rates), jnp.asarray(weight_decays), indexing="ij")
    return Grid(own.reshape(-1), decays.reshape(-1), jnp.asarray(seeds))

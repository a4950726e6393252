r"""Linear probes of frozen features, a whole grid of settings in one program.

    min_{W, b}  mean_i CE(W^T x_i + b, y_i) + lam/2 |W|^2

`probe_lbfgs` solves it for many lam at once, to convergence; `probe_sgd` is MAE's recipe (LARS,
warm-up, cosine; He et al. 2022, appendix A.1) for many rates, decays and seeds. Features stay where
they are, every entry of the grid is a column of the same products. scikit-learn's C is
1 / (lam n).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.numerics.compiled import compiled
from jaxmethods.rsfm.schedules import lars_update, warmup_cosine

EPSILON = 1e-6
MEMORY = 10
"""Pairs of steps and changes of gradient that L-BFGS remembers."""


class Scaling(NamedTuple):
    """What makes features comparable: less `mean`, over `scale`."""

    mean: jax.Array
    """[D]"""
    scale: jax.Array
    """[D]"""

    def __call__(self, features: jax.Array) -> jax.Array:
        return (features - self.mean) / self.scale


class Probe(NamedTuple):
    """Linear classifiers, one for each entry of a grid."""

    weight: jax.Array
    """[G, D, C]"""
    bias: jax.Array
    """[G, C], centered."""
    objective: jax.Array
    """[G], at the end."""
    gradient: jax.Array
    """[G] largest entry of the gradient at the end."""
    steps: jax.Array
    """[G]"""


class Grid(NamedTuple):
    """Settings of `probe_sgd`, one entry of each for every probe."""

    rate: jax.Array
    """[G], largest learning rate."""
    weight_decay: jax.Array
    """[G]"""
    seed: jax.Array
    """[G] integers: initial weights and order of batches."""


def standardizer(features: jax.Array) -> Scaling:
    """What BatchNorm without its affine map does: mean and sqrt(biased variance + 1e-6).

    Args:
        features: [N, D].

    Returns:
        A scaling of features of that width.
    """
    centered = features - jnp.mean(features, axis=0)
    scale = jnp.sqrt(jnp.mean(jnp.square(centered), axis=0) + EPSILON)
    return Scaling(jnp.mean(features, axis=0), scale)


def no_scaling(features: jax.Array) -> Scaling:
    """Features [N, D] as they are."""
    width = features.shape[1]
    return Scaling(jnp.zeros(width, features.dtype), jnp.ones(width, features.dtype))


@compiled("classes", "most_steps")
def probe_lbfgs(
    features: jax.Array,
    labels: jax.Array,
    lams: jax.Array,
    *,
    classes: int,
    tolerance: float = 1e-6,
    most_steps: int = 500,
) -> Probe:
    """The optimum for every lam, by L-BFGS from zero.

    Args:
        features: [N, D], standardized or not.
        labels: [N] integers.
        lams: [G] penalties, positive.
        classes: C; static.
        tolerance: of the largest entry of the gradient.
        most_steps: of each; static.

    Returns:
        The classifiers.
    """
    targets = jax.nn.one_hot(labels, classes, dtype=features.dtype)
    # Zeros that the compiler can't know. On CPU, XLA's products of features with a constant that is
    # made in the same program read memory that was never written (jax 0.10.2 and 0.12, YNN).
    start = (0.0 * (features.T @ targets), jnp.zeros(classes, features.dtype))

    def solve(lam: jax.Array) -> Probe:
        def objective(params: Any) -> jax.Array:
            weight, bias = params
            losses = optax.softmax_cross_entropy(features @ weight + bias, targets)
            return jnp.mean(losses) + lam / 2 * jnp.sum(jnp.square(weight))

        return _minimize(objective, start, tolerance, most_steps)

    return jax.vmap(solve)(lams.astype(features.dtype))


def _minimize(objective: Any, start: Any, tolerance: float, most_steps: int) -> Probe:
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=16, initial_guess_strategy="one")
    solver = optax.lbfgs(memory_size=MEMORY, linesearch=search)
    gradient_at = optax.value_and_grad_from_state(objective)

    def largest(gradient: Any) -> jax.Array:
        return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradient)]))

    def unfinished(carry: Any) -> jax.Array:
        _, _, value, before, gradient, count = carry
        # In float32 the search ends where no step makes the value smaller.
        moving = (count < 2) | (value < before)
        return (count < most_steps) & (gradient > tolerance) & moving

    def advance(carry: Any) -> Any:
        params, state, last, _, _, count = carry
        value, gradient = gradient_at(params, state=state)
        updates, state = solver.update(
            gradient, state, params, value=value, grad=gradient, value_fn=objective
        )
        params = optax.apply_updates(params, updates)
        after, slope = gradient_at(params, state=state)
        del last
        return params, state, after, value, largest(slope), count + 1

    value, slope = jax.value_and_grad(objective)(start)
    carry = (start, solver.init(start), value, value, largest(slope), jnp.zeros((), jnp.int32))
    (weight, bias), _, value, _, gradient, count = jax.lax.while_loop(unfinished, advance, carry)
    return Probe(weight, bias - jnp.mean(bias), value, gradient, count)


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


def logits(probe: Probe, features: jax.Array) -> jax.Array:
    """What every classifier says of images.

    Args:
        probe: G classifiers.
        features: [N, D], scaled as those it learned from.

    Returns:
        [G, N, C].
    """
    return jnp.einsum("nd,gdc->gnc", features, probe.weight) + probe.bias[:, None]


def accuracies(probe: Probe, features: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of images that every classifier gets right.

    Args:
        probe: G classifiers.
        features: [N, D], scaled as those it learned from.
        labels: [N].

    Returns:
        [G] float32.
    """
    right = jnp.argmax(logits(probe, features), axis=-1) == labels
    return jnp.mean(right, axis=-1, dtype=jnp.float32)

"""Norms of weight matrices and the capacity measures made of them.

    spectral complexity   prod_l s_l (sum_l (|W_l - W0_l|_{2,1} / s_l)^(2/3))^(3/2)
                                                     (Bartlett, Foster, Telgarsky 2017)
    spectral-Frobenius    prod_l s_l^2 sum_l |W_l|_F^2 / s_l^2 / margin^2   (Neyshabur et al. 2018)
    path norm             sum over paths of prod |w|^p, p = 1 or 2
    margin                f_y - max_{c != y} f_c

with spectral norms s_l and (2, 1) norms as sums of the Euclidean norms of columns (output units of
W [in, out]). They correlate with generalization on some families of models (Jiang et al. 2020); a
single number bounds nothing that is smaller than 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.numerics.precision import wide
from jaxmethods.numerics.predictions import labeled


class Norms(NamedTuple):
    """[L] each but for the products."""

    spectral: jax.Array
    frobenius: jax.Array
    two_one: jax.Array
    """Sums of the norms of columns of W - W0."""
    one: jax.Array
    """Sums of absolute values of W."""
    product_spectral: jax.Array
    product_frobenius: jax.Array
    stable_ranks: jax.Array
    """Sum over layers of |W|_F^2 / s^2, []."""
    spectral_complexity: jax.Array
    spectral_frobenius: jax.Array


def norms(
    matrices: Sequence[jax.Array],
    initial: Sequence[jax.Array] | None = None,
    margin: jax.Array | float = 1.0,
) -> Norms:
    """Norms of every layer and the measures of all.

    Args:
        matrices: W_l [in, out].
        initial: W_l at the initialization; None: 0.
        margin: gamma of the spectral-Frobenius measure, e.g. the margins' 0.1 quantile; not
            positive: that measure is NaN.

    Returns:
        [L] for layers, [] for products and measures.
    """
    matrices = [wide(w) for w in matrices]
    start = [jnp.zeros_like(w) for w in matrices] if initial is None else initial
    spectral = jnp.stack([jnp.linalg.norm(w, 2) for w in matrices])
    frobenius = jnp.stack([jnp.linalg.norm(w) for w in matrices])
    away = [w - w0 for w, w0 in zip(matrices, start, strict=True)]
    two_one = jnp.stack([jnp.sum(jnp.linalg.norm(d, axis=0)) for d in away])
    ranks = jnp.sum(frobenius**2 / spectral**2)
    product = jnp.prod(spectral)
    margin = jnp.where(jnp.asarray(margin) > 0, margin, jnp.nan)
    return Norms(
        spectral,
        frobenius,
        two_one,
        jnp.stack([jnp.sum(jnp.abs(w)) for w in matrices]),
        product,
        jnp.prod(frobenius),
        ranks,
        product * jnp.sum((two_one / spectral) ** (2 / 3)) ** 1.5,
        product**2 * ranks / margin**2,
    )


def map_spectral_norm(
    layer: Callable[[jax.Array], jax.Array], like: jax.Array, key: jax.Array, steps: int = 64
) -> jax.Array:
    """Largest singular value of a linear map such as a convolution, by power iteration, [].

    Args:
        layer: linear, of arrays like `like`.
        like: an input; only its shape and type count.
        key: of the start.
        steps: products with the map and its transpose.

    Returns:
        A lower bound that grows with steps, [].
    """
    transposed = jax.linear_transpose(layer, like)

    def step(_: int, x: jax.Array) -> jax.Array:
        (x,) = transposed(layer(x))
        return x / jnp.maximum(jnp.linalg.norm(x), jnp.finfo(x.dtype).tiny)

    start = jax.random.normal(key, like.shape, like.dtype)
    x = jax.lax.fori_loop(0, steps, step, start / jnp.linalg.norm(start))
    return jnp.linalg.norm(layer(x))


def path_norm(
    apply: Callable[[Any, Any], jax.Array], params: Any, like: Any, p: int = 2
) -> jax.Array:
    """Sum over paths of the product of |w|^p: a forward pass of ones with the weights' powers.

    It is unchanged when a ReLU unit's inputs are scaled and its outputs scaled back.

    Args:
        apply: a ReLU network without normalization layers; leaves of one axis or none are biases
            and left out.
        params: its parameters.
        like: one input [1, ...], of which only the shape counts.
        p: 1 or 2.

    Returns:
        The sum [], not its root.

    Raises:
        ValueError: p is neither 1 nor 2.
    """
    if p not in (1, 2):
        raise ValueError(f"p: expected 1 or 2, got {p}")

    def power(leaf: jax.Array) -> jax.Array:
        return jnp.abs(leaf) ** p if leaf.ndim > 1 else jnp.zeros_like(leaf)

    powers = jax.tree.map(power, trees.floats(params))
    ones = jax.tree.map(jnp.ones_like, like)
    return jnp.sum(apply(trees.merge(params, powers), ones))


def check_homogeneous(
    apply: Callable[[Any, Any], jax.Array], params: Any, inputs: Any, tolerance: float = 1e-3
) -> None:
    """Refuses networks that are not positively homogeneous in their inputs when biases are zero.

    A path norm means nothing for them: tanh, normalization layers, softmax inside.

    Args:
        apply: (params, inputs) -> outputs.
        params: its parameters.
        inputs: some examples.
        tolerance: relative difference allowed.

    Raises:
        ValueError: f(2 x) is not 2 f(x).
    """
    weights = jax.tree.map(
        lambda leaf: leaf if leaf.ndim > 1 else jnp.zeros_like(leaf), trees.floats(params)
    )
    own = trees.merge(params, weights)
    once = apply(own, inputs)
    twice = apply(own, jax.tree.map(lambda x: 2 * x, inputs))
    apart = float(jnp.max(jnp.abs(twice - 2 * once)))
    if not apart <= tolerance * float(jnp.max(jnp.abs(twice))):
        raise ValueError(
            "apply: expected a ReLU network without normalization layers, whose outputs double "
            f"with its inputs when biases are zero; got a difference of {apart:.2g}"
        )


def distance_from(params: Any, initial: Any) -> jax.Array:
    """|theta - theta_0|, []."""
    return trees.norm(jax.tree.map(jnp.subtract, trees.floats(params), trees.floats(initial)))


def margins(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """f_y - max of the others, [...], of logits [..., C]; negative where another is the largest,
    NaN where the label is no class, such as -1."""
    there = labeled(labels, logits.shape[-1])
    own = jnp.take_along_axis(logits, jnp.where(there, labels, 0)[..., None], axis=-1)[..., 0]
    other = jnp.where(jax.nn.one_hot(labels, logits.shape[-1], dtype=bool), -jnp.inf, logits)
    return jnp.where(there, own - jnp.max(other, axis=-1), jnp.nan)


def fisher_rao(logits: jax.Array, labels: jax.Array, layers: int) -> jax.Array:
    """L^2 E[(dl/df . f)^2] of a bias-free ReLU network with L weight layers (Liang et al. 2019).

    Args:
        logits: [N, C].
        labels: int [N]; examples whose label is no class, such as -1, don't count.
        layers: L.

    Returns:
        The squared norm, [].
    """
    logits = wide(logits)
    slopes = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    there = labeled(labels, logits.shape[1])
    return layers**2 * jnp.mean(jnp.sum(slopes * logits, axis=1) ** 2, where=there)

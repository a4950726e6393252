r"""A linear head that paints classes: every token says the logits of its p x p pixels.

    min_{W, b}  mean over valid pixels of CE(W z + b, y) + decay/2 |W|^2

Tokens are frozen and standardized over the training images, so a step is two products; the whole
training is one program.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.models.geovit.patches import patchify, unpatchify
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.linear_probe import Scaling, standardizer
from jaxmethods.rsfm.evaluation.measures.segmentation import IGNORED


class Segmenter(NamedTuple):
    """A linear map from tokens to pixels."""

    scaling: Scaling
    weight: jax.Array
    """[D, p p C]"""
    bias: jax.Array
    """[p p C]"""
    losses: jax.Array
    """[steps]"""


@compiled("patch", "classes", "steps")
def fit_segmenter(
    tokens: jax.Array,
    labels: jax.Array,
    *,
    patch: int,
    classes: int,
    steps: int = 200,
    rate: float = 0.01,
    decay: float = 1e-3,
) -> Segmenter:
    """Learns the head by Adam on all images at once, from zero.

    Args:
        tokens: [N, L, D] frozen.
        labels: [N, H, W] integers; 255 and what is no class does not count.
        patch: p; static.
        classes: C; static.
        steps: static.
        rate: of Adam, falling as a cosine.
        decay: of the weights.

    Returns:
        The head.
    """
    flat = tokens.reshape(-1, tokens.shape[-1])
    scaling = standardizer(flat)
    x = scaling(flat)
    y = patchify(labels[..., None].astype(jnp.int32), patch).reshape(-1, patch * patch)
    counts = (y >= 0) & (y < classes) & (y != IGNORED)
    weight = counts / jnp.maximum(jnp.sum(counts), 1)
    target = jnp.where(counts, y, 0)

    def loss(params: Any) -> jax.Array:
        logits = (x @ params[0] + params[1]).reshape(*y.shape, classes)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        return jnp.sum(weight * entropy) + decay / 2 * jnp.sum(jnp.square(params[0]))

    optimizer = optax.adam(optax.cosine_decay_schedule(rate, max(steps, 1)))
    outputs = patch * patch * classes
    params = (jnp.zeros((x.shape[1], outputs), x.dtype), jnp.zeros(outputs, x.dtype))

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return Segmenter(scaling, *params, losses)


def segment(head: Segmenter, tokens: jax.Array, patch: int, classes: int) -> jax.Array:
    """Logits of pixels.

    Args:
        head: that was learned.
        tokens: [N, L, D].
        patch: p; static.
        classes: C; static.

    Returns:
        [N, H, W, C].
    """
    logits = head.scaling(tokens) @ head.weight + head.bias
    return unpatchify(logits, patch, classes)

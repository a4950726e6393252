"""Small learners that many tests train in one vmapped program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.interpret.losses import cross_entropy
from tests.interpret.networks import random_layers, relu_mlp


def clusters(seed, examples, features, classes=2, spread=1.0, noise=0.0):
    """Gaussian classes; a share `noise` of the labels is random."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, examples)
    centers = np.random.default_rng(0).normal(size=(classes, features))
    x = centers[y] + spread * rng.normal(size=(examples, features))
    y = np.where(rng.random(examples) < noise, rng.integers(0, classes, examples), y)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)


def mlp_learner(x, y, hidden=16, steps=200, rate=0.5, classes=2, decay=0.0):
    """train(key, weights) -> parameters after full-batch gradient descent on weighted examples."""

    def train(key, weights):
        def loss(params):
            losses = cross_entropy.value(relu_mlp(params, x), y)
            squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
            return jnp.sum(weights * losses) / jnp.sum(weights) + decay * squares / 2

        def step(params, _):
            gradient = jax.grad(loss)(params)
            return jax.tree.map(lambda p, g: p - rate * g, params, gradient), None

        params = random_layers(key, (x.shape[1], hidden, classes))
        return jax.lax.scan(step, params, None, length=steps)[0]

    return train

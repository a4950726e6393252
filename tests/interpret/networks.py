"""Small networks and problems that many tests share."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.interpret.losses import cross_entropy
from jaxmethods.interpret.problem import Data, make_problem


def mlp(params, x):
    """tanh between layers, none behind the last; params are a list of (W [in, out], b)."""
    for w, b in params[:-1]:
        x = jnp.tanh(x @ w + b)
    w, b = params[-1]
    return x @ w + b


def relu_mlp(params, x):
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = params[-1]
    return x @ w + b


def layers(theta, sizes):
    """A flat vector (W0, b0, W1, b1, ...) as params."""
    params, at = [], 0
    for rows, columns in itertools.pairwise(sizes):
        end = at + rows * columns
        w = np.reshape(theta[at:end], (rows, columns))
        params.append((w, theta[end : end + columns]))
        at = end + columns
    assert at == len(theta)
    return params


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def random_layers(key, sizes):
    """Entries of variance 1 over the number of inputs."""
    params = []
    for i, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        w, b = jax.random.split(jax.random.fold_in(key, i))
        params.append(
            (
                jax.random.normal(w, (rows, columns)) / rows**0.5,
                0.1 * jax.random.normal(b, (columns,)),
            )
        )
    return params


def classification(seed, examples=24, sizes=(4, 5, 3), apply=mlp):
    """A random network on random inputs and labels; of numpy, since it compiles nothing."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    data = Data(
        draw(examples, sizes[0]), jnp.asarray(rng.integers(0, sizes[-1], examples), jnp.int32)
    )
    params = [(draw(n, m) / n**0.5, draw(m) / 10) for n, m in itertools.pairwise(sizes)]
    return make_problem(apply, cross_entropy, params, data)

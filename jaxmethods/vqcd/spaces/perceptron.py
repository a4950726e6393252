"""Multilayer perceptrons as {"dense0": {"weight": [in, out], "bias": [out]}, ...}."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp

from jaxmethods.models.temporal_unet import dense
from jaxmethods.vqcd.types import Params


def init_perceptron(key: jax.Array, sizes: Sequence[int]) -> Params:
    """Layers of the given sizes, every number from U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    params = {}
    for place, (inputs, outputs) in enumerate(pairwise(sizes)):
        bound = inputs**-0.5
        weight_key, bias_key = jax.random.split(jax.random.fold_in(key, place))
        weight = jax.random.uniform(weight_key, (inputs, outputs), minval=-bound, maxval=bound)
        bias = jax.random.uniform(bias_key, (outputs,), minval=-bound, maxval=bound)
        params[f"dense{place}"] = {"weight": weight, "bias": bias}
    return params


def perceptron(
    params: Params, x: jax.Array, activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
) -> jax.Array:
    """[..., in] -> [..., out], the activation between layers."""
    for place in range(len(params)):
        x = dense(params[f"dense{place}"], activation(x) if place else x)
    return jnp.asarray(x)

"""Dense layers, normalization and activation, in forms that compile to lean code.

They compute what their namesakes in Flax compute and hold the same parameters. Training at the
usual sizes (thousands of samples of a few agents, width 64) is bound by memory traffic, and these
forms save a third of it on CPU.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmethods.models.initializers import orthogonal

EPSILON = 1e-5
"""Added to the variance in every normalization."""


class Dense(nn.Dense):
    """`nn.Dense` on tokens flattened to one axis, [..., D] -> [..., E].

    With one leading axis the weight gradient is a plain matrix product; with several, XLA on CPU
    transposes the cotangent in memory first.
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        tokens = inputs.reshape(-1, inputs.shape[-1])  # [B N, in]
        return super().__call__(tokens).reshape(*inputs.shape[:-1], self.features)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + 1e-5) * scale + bias over the last axis, in float32."""

    dtype: str = "float32"
    """The output's type."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        tokens = x.reshape(-1, x.shape[-1]).astype(jnp.float32)  # [B N, E]
        return layer_norm(tokens, scale, bias).astype(self.dtype).reshape(x.shape)


class NormalizedDense(nn.Module):
    """A dense layer of the normalized input, in one matrix product.

    Subtracting the mean commutes with the product, (x - mean) W = x (W - mean of W's rows), so the
    normalized observations, by far the largest array of the network, are never made. Nor does it
    matter what is taken from all entries of x before: the mean, rounded to an integer, so that no
    digits are lost to it where it is far from the spread.
    """

    features: int
    gain: float
    """Scale of the kernel's orthogonal initialization."""
    dtype: str = "float32"
    """The output's type."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        scale = self.param("scale", ones, (width,), jnp.float32)
        shift = self.param("shift", zeros, (width,), jnp.float32)
        kernel = self.param("kernel", orthogonal(self.gain), (width, self.features), jnp.float32)
        bias = self.param("bias", zeros, (self.features,), jnp.float32)
        # One-byte types, and their distances from an integer among them, are exact in reduced
        # precision; anything else may lose its variation when it is rounded.
        exact = x.dtype.itemsize == 1 and not jnp.issubdtype(x.dtype, jnp.floating)
        tokens = x.reshape(-1, width).astype(jnp.float32)  # [B N, D]
        center = jnp.round(jnp.mean(tokens, axis=-1, keepdims=True))
        tokens = tokens - jax.lax.stop_gradient(center)
        inverse_std = jax.lax.rsqrt(jnp.var(tokens, axis=-1, keepdims=True) + EPSILON)
        scaled = scale[:, None] * kernel
        product = jnp.matmul(
            tokens.astype(self.dtype if exact else jnp.float32),
            (scaled - jnp.mean(scaled, axis=0)).astype(self.dtype if exact else jnp.float32),
            precision="default" if exact else "highest",
            preferred_element_type=jnp.float32,
        )
        out = product * inverse_std + (shift @ kernel + bias)
        return out.astype(self.dtype).reshape(*x.shape[:-1], self.features)  # [B, N, E]


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Layer normalization of tokens [M, E]; the reverse rule keeps the normalized tokens."""
    return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x, scale, bias):
    # In two passes: E[x^2] - E[x]^2 has no digits left where the mean is far from the spread.
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    inverse_std = jax.lax.rsqrt(variance + EPSILON)
    normalized = centered * inverse_std
    return normalized * scale + bias, (normalized, inverse_std, scale)


def _layer_norm_backward(residuals, cotangent):
    normalized, inverse_std, scale = residuals
    product = cotangent * normalized
    averaging = functools.partial(jnp.matmul, b=scale / scale.shape[-1], precision="highest")
    mean, projection = averaging(cotangent)[:, None], averaging(product)[:, None]
    x = inverse_std * (cotangent * scale - mean - normalized * projection)
    return x, jnp.sum(product, axis=0), jnp.sum(cotangent, axis=0)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)

r"""A kernel that merges weights on the way to the product: y_g = x_g W(c_g)^T + b(c_g).

    W(c_g) = W_0 + sum_t c_gt tau_t

A program of the grid owns a tile of outputs and a few groups. It loads the tile of W_0 and of every
expert once, forms each group's merged tile in registers and multiplies the group's tokens with it,
so that merged weights never exist in memory.

Written in Pallas for GPUs (Triton) and TPUs (Mosaic). Verified in interpret mode, and that it
lowers for both; it has not been timed on either, which is why `merged_modules.choose` doesn't
choose it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

TILE = {"gpu": (32, 32), "tpu": (128, 128)}
"""Outputs of a program, and inputs that it multiplies at a time."""
GROUPS = 4
"""The most groups of a program, where their tokens fit."""
TOKENS = 16
"""Tokens are padded to a multiple of it; tensor cores take no fewer."""


def merged_linear(
    x: jax.Array,
    coefficients: jax.Array,
    base: Any,
    tau: Any,
    *,
    platform: str | None = None,
    interpret: bool | None = None,
) -> jax.Array:
    """x W(c)^T + b(c), merged inside the kernel.

    Args:
        x: [G, M, D].
        coefficients: [G, T].
        base, tau: {"weight" [O, D], "bias" [O]} and the same with a leading axis T.
        platform: "gpu" or "tpu", whose tiles are used; None: what JAX runs on.
        interpret: run as plain JAX; None: where there is neither.

    Returns:
        [G, M, O] of x's dtype; accumulated in float32.
    """
    backend = jax.default_backend()
    interpret = backend == "cpu" if interpret is None else interpret
    platform = platform or ("tpu" if backend == "tpu" else "gpu")
    tile, step = TILE[platform]
    groups, tokens, _ = x.shape
    tasks, outputs = tau["bias"].shape
    many = min(GROUPS, groups)
    x = _pad(x, (many, _power_of_two(tokens) if platform == "gpu" else TOKENS, step))
    weight, vectors = _pad(base["weight"], (tile, step)), _pad(tau["weight"], (1, tile, step))
    change = coefficients.astype(jnp.float32) @ tau["bias"].astype(jnp.float32)
    bias = base["bias"].astype(jnp.float32) + change  # [G, O]: small
    padded, rows, width = x.shape

    def kernel(c: Any, x: Any, weight: Any, vectors: Any, bias: Any, out: Any) -> None:
        def add(index: Any, totals: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            at = pl.ds(index * step, step)
            origin = weight[:, at].astype(jnp.float32)
            experts = [vectors[t, :, at].astype(jnp.float32) for t in range(tasks)]
            after = []
            for group, total in enumerate(totals):
                merged = origin
                for t, expert in enumerate(experts):
                    merged += c[group, t] * expert
                tokens = x[group, :, at]
                product = jax.lax.dot_general(
                    tokens,
                    merged.astype(tokens.dtype),
                    (((1,), (1,)), ((), ())),
                    precision="highest",
                    preferred_element_type=jnp.float32,
                )
                after.append(total + product)
            return tuple(after)

        start = tuple(jnp.zeros((rows, tile), jnp.float32) for _ in range(many))
        totals = jax.lax.fori_loop(0, width // step, add, start)
        for group, total in enumerate(totals):
            out[group] = (total + bias[group].astype(jnp.float32)).astype(out.dtype)

    # Groups are the inner axis of the grid: where programs run in order, tiles of experts stay.
    of_groups = pl.BlockSpec((many, rows, width), lambda o, g: (g, 0, 0))
    out = pl.pallas_call(
        kernel,
        grid=(len(weight) // tile, padded // many),
        in_specs=[
            pl.BlockSpec((None, many, tasks), lambda o, g: (g, 0, 0)),
            of_groups,
            pl.BlockSpec((tile, width), lambda o, g: (o, 0)),
            pl.BlockSpec((tasks, tile, width), lambda o, g: (0, o, 0)),
            pl.BlockSpec((None, many, tile), lambda o, g: (g, 0, o)),
        ],
        out_specs=pl.BlockSpec((many, rows, tile), lambda o, g: (g, 0, o)),
        out_shape=jax.ShapeDtypeStruct((padded, rows, len(weight)), x.dtype),
        interpret=interpret,
        # On GPU Triton, whose blocks are only pointers until they are read.
        compiler_params=triton.CompilerParams() if platform == "gpu" else None,
    )(
        _pad(coefficients.astype(jnp.float32), (many, 1)).reshape(-1, many, tasks),  # [G / g, g, T]
        x,
        weight,
        vectors,
        _pad(bias, (many, tile)).reshape(-1, many, len(weight)),  # [G / g, g, out]
    )
    return out[:groups, :tokens, :outputs]


def _pad(array: jax.Array, multiples: tuple[int, ...]) -> jax.Array:
    """Zeros at the end of every axis, up to the next multiple."""
    ends = [-size % multiple for size, multiple in zip(array.shape, multiples, strict=True)]
    return jnp.pad(array, [(0, end) for end in ends]) if any(ends) else array


def _power_of_two(size: int) -> int:
    return max(TOKENS, 1 << (size - 1).bit_length())

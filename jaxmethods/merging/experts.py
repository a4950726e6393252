r"""Modules whose weights are merged for every input: W(c) = W_0 + sum_t c_t tau_t.

The same result has several costs. With G groups of samples that share coefficients, M tokens in a
group, T experts and W weights,

| strategy | multiply-adds | weights read and written |
| --- | --- | --- |
| merge | G T W + G M W | (T + 1) W for every chunk of groups, and 2 W for every group |
| expertwise | G M (T + 1) W | (T + 1) W |

"merge" builds W(c) for a few groups at a time (one on CPU, where it then stays in the cache; on
accelerators as many as fit into `SCRATCH_BYTES`, as one product c tau) and forgets it: the backward
pass builds it again, so nothing of the size of G weights is ever kept. "expertwise" never builds
it: the pre-activation is linear in c. It wins for single tokens, where merging would cost more
than it serves; `choose` decides by shape. Batch routing is G = 1: merged once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

Strategy = Literal["auto", "merge", "expertwise"]
SCRATCH_BYTES = 2**30
"""Merged weights that may exist at once on an accelerator."""
FLOPS_PER_BYTE = {"cpu": 8.0, "gpu": 125.0, "tpu": 200.0}
"""How many multiply-adds a device does in the time of moving one byte; orders of magnitude."""


class Choice(NamedTuple):
    """How merged modules are computed."""

    strategy: Literal["merge", "expertwise"]
    chunk: int
    """Groups merged at once."""


def choose(
    groups: int, tokens: int, tasks: int, weights: int, itemsize: int = 4, device: str | None = None
) -> Choice:
    """The cheaper strategy for G groups of M tokens, T experts and W weights of a module.

    Expertwise costs M T more multiply-adds per weight and saves moving it about twice, so it wins
    where M T < itemsize x FLOPS_PER_BYTE.
    """
    device = device or jax.default_backend()
    if tokens * tasks < itemsize * FLOPS_PER_BYTE.get(device, FLOPS_PER_BYTE["gpu"]):
        return Choice("expertwise", groups)
    if device == "cpu":
        return Choice("merge", 1)
    return Choice("merge", max(1, min(groups, SCRATCH_BYTES // (weights * itemsize))))


def merge_weights(base: Any, tau: Any, coefficients: jax.Array) -> Any:
    """W_0 + sum_t c_t tau_t of a tree; tau [T, ...], coefficients [T]."""

    def merge(origin: jax.Array, vectors: jax.Array) -> jax.Array:
        # Products in full precision: they are few, and rounded coefficients would shift weights.
        change = jnp.tensordot(coefficients.astype(vectors.dtype), vectors, 1, precision="highest")
        return (origin + change).astype(origin.dtype)

    return jax.tree.map(merge, base, tau)


def apply_merged(
    apply: Callable[[Any, jax.Array], jax.Array],
    base: Any,
    tau: Any,
    h: jax.Array,
    coefficients: jax.Array,
    chunk: int = 1,
) -> jax.Array:
    """A module with merged weights, built for `chunk` groups at a time.

    Args:
        apply: (weights, [b, L, D]) -> [b, L, D], of any module.
        base, tau: W_0 and the task vectors [T, ...].
        h: [B, L, D].
        coefficients: [G, T], of G equal groups of consecutive samples.

    Returns:
        [B, L, D]. Differentiable in everything; only h and the coefficients are kept for it.
    """
    groups = len(coefficients)

    @jax.checkpoint
    def one(h: jax.Array, c: jax.Array) -> jax.Array:
        return apply(merge_weights(base, tau, c), h)

    grouped = h.reshape(groups, -1, *h.shape[1:])
    if groups == 1:
        return one(grouped[0], coefficients[0])
    if chunk >= groups:
        out = jax.vmap(one)(grouped, coefficients)
    else:
        size = chunk if chunk > 1 else None
        out = jax.lax.map(lambda x: one(*x), (grouped, coefficients), batch_size=size)
    return out.reshape(h.shape[0], *out.shape[2:])


def merged_mlp(
    activation: Callable[[jax.Array], jax.Array],
    base: Any,
    tau: Any,
    h: jax.Array,
    coefficients: jax.Array,
    strategy: Strategy = "auto",
    chunk: int | None = None,
) -> jax.Array:
    """W_2(c) act(W_1(c) h + b_1(c)) + b_2(c) of {"fc1", "fc2"} with (out, in) weights and biases.

    Args:
        h: [B, L, D].
        coefficients: [G, T], of G equal groups of consecutive samples.
        strategy: "auto" is `choose`.
        chunk: groups merged at once; None: what `choose` says.

    Returns:
        [B, L, D'].
    """
    weight = base["fc1"]["weight"]
    groups, tasks = coefficients.shape
    tokens = h.shape[0] * h.shape[1] // groups
    weights = sum(leaf.size for leaf in jax.tree.leaves(base))
    best = choose(groups, tokens, tasks, weights, weight.dtype.itemsize)
    if strategy == "auto":
        strategy = best.strategy
    if strategy == "expertwise":
        return _expertwise(activation, base, tau, h, coefficients)
    if strategy != "merge":
        raise ValueError(f"strategy: expected auto, merge or expertwise, got {strategy!r}")

    def mlp(params: Any, h: jax.Array) -> jax.Array:
        return _linear(params["fc2"], activation(_linear(params["fc1"], h)))

    return apply_merged(mlp, base, tau, h, coefficients, best.chunk if chunk is None else chunk)


def _expertwise(
    activation: Callable, base: Any, tau: Any, h: jax.Array, coefficients: jax.Array
) -> jax.Array:
    def layer(name: str, x: jax.Array) -> jax.Array:
        """x [G, M, in]; all experts in one product over (t, in)."""
        scaled = coefficients[:, :, None, None] * x[:, None]  # [G, T, M, in]
        changed = jnp.einsum("gtmi,toi->gmo", scaled.astype(x.dtype), tau[name]["weight"])
        bias = base[name]["bias"] + coefficients @ tau[name]["bias"]  # [G, out]
        return x @ base[name]["weight"].T + changed + bias[:, None]

    x = h.reshape(len(coefficients), -1, h.shape[-1])
    out = layer("fc2", activation(layer("fc1", x)))
    return out.reshape(*h.shape[:-1], out.shape[-1])


def _linear(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["weight"].T + params["bias"]

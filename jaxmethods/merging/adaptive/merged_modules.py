r"""Modules whose weights are merged for every input: W(c) = W_0 + sum_t c_t tau_t.

The same result has several costs. With G groups of samples that share coefficients, M tokens in a
group, T experts and W weights,

| strategy | multiply-adds | weights read and written |
| --- | --- | --- |
| merge | G T W + G M W | (T + 1) W for every chunk of groups, and 2 W for every group |
| blocks | G T W + G M W | (T + 1) W; what is merged stays in the cache |
| expertwise | G M (T + 1) W | (T + 1) W |
| fused | G T W + G M W | (T + 1) W; what is merged stays in registers |

"merge" builds W(c) for a few groups at a time (one on CPU, on accelerators as many as fit into
`SCRATCH_BYTES`, as one product c tau) and forgets it; it works for any module. "blocks" takes an
MLP's hidden units a block at a time, merges the block's weights for all groups and adds what the
block contributes to the output: every expert is read once, however many groups there are.
"expertwise" merges nothing: the pre-activation is linear in c. It wins for single tokens, where
merging would cost more than it serves. "fused" is a kernel for accelerators (`fused`).

Nothing of the size of G weights is kept for the backward pass: it merges again, unless G is 1
(batch routing, merged once). `choose` decides by shape and device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.merging.adaptive.fused import merged_linear
from jaxmethods.merging.static.trees import compute_dtype

Strategy = Literal["auto", "merge", "blocks", "expertwise", "fused"]
SCRATCH_BYTES = 2**30
"""Merged weights that may exist at once on an accelerator."""
CACHE_BLOCK = 128
"""Hidden units of a block on CPU: their base and experts stay in the cache for all groups."""
FLOPS_PER_BYTE = {"cpu": 0.0, "gpu": 125.0, "tpu": 200.0}
"""How many multiply-adds a device does in the time of moving one byte; orders of magnitude.
On CPU blocks stay in the cache, and expertwise was never faster, not for single tokens either."""


class Choice(NamedTuple):
    """How a merged MLP is computed."""

    strategy: Literal["merge", "blocks", "expertwise"]
    chunk: int
    """Groups merged at once by "merge"."""
    block: int
    """Hidden units merged at once by "blocks"."""


def choose(
    groups: int,
    tokens: int,
    tasks: int,
    weights: int,
    units: int,
    itemsize: int = 4,
    device: str | None = None,
) -> Choice:
    """The cheapest strategy for G groups of M tokens, T experts, an MLP of W weights and I units.

    Expertwise costs M T more multiply-adds per weight and saves moving it about twice, so it wins
    where M T < itemsize x FLOPS_PER_BYTE. One group is merged at once, several block by block.

    Args:
        groups: G.
        tokens: M, in each group.
        tasks: T.
        weights: W, entries of the MLP's matrices.
        units: I, hidden.
        itemsize: bytes of a weight.
        device: "cpu", "gpu" or "tpu"; None: JAX's default.

    Returns:
        The strategy, with the sizes of its parts.
    """
    device = device or jax.default_backend()
    scratch = max(1, SCRATCH_BYTES // (weights * itemsize))  # groups whose merged weights fit
    chunk = 1 if device == "cpu" else min(groups, scratch)
    block = CACHE_BLOCK if device == "cpu" else max(1, units * scratch // groups)
    block = min(block, units)
    if tokens * tasks < itemsize * FLOPS_PER_BYTE.get(device, FLOPS_PER_BYTE["gpu"]):
        return Choice("expertwise", chunk, block)
    return Choice("merge" if groups == 1 else "blocks", chunk, block)


def merge_weights(base: Any, tau: Any, coefficients: jax.Array) -> Any:
    """W_0 + sum_t c_t tau_t of a tree; tau [T, ...], coefficients [T]."""

    def merge(origin: jax.Array, vectors: jax.Array) -> jax.Array:
        return (origin + mix(coefficients, vectors)).astype(origin.dtype)

    return jax.tree.map(merge, base, tau)


def mix(coefficients: jax.Array, vectors: jax.Array) -> jax.Array:
    """sum_t c_t tau_t of coefficients [..., T] and vectors [T, ...].

    In float32 at least and full precision: products are few, and rounded coefficients would shift
    weights, those of bfloat16 by up to 1 in 256.
    """
    dtype = compute_dtype(vectors)
    given = coefficients.astype(dtype), vectors.astype(dtype)
    return jnp.tensordot(*given, axes=1, precision="highest")


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
        chunk: groups that are merged and run at once; static.

    Returns:
        [B, L, D]. Differentiable in everything; of several groups only h and the coefficients are
        kept for it.
    """
    groups = len(coefficients)

    def once(h: jax.Array, c: jax.Array) -> jax.Array:
        return apply(merge_weights(base, tau, c), h)

    if groups == 1:
        # One set of merged weights is small enough to be kept, which saves a third of the time.
        return once(h, coefficients[0])
    one = jax.checkpoint(once)
    grouped = h.reshape(groups, -1, *h.shape[1:])  # [G, B / G, L, D]
    if chunk >= groups:
        out = jax.vmap(one)(grouped, coefficients)
    else:
        size = chunk if chunk > 1 else None
        out = jax.lax.map(lambda x: one(*x), (grouped, coefficients), batch_size=size)
    return out.reshape(h.shape[0], *out.shape[2:])  # [B, L, D]


def merged_mlp(
    activation: Callable[[jax.Array], jax.Array],
    base: Any,
    tau: Any,
    h: jax.Array,
    coefficients: jax.Array,
    strategy: Strategy = "auto",
    chunk: int | None = None,
    block: int | None = None,
    layer: jax.Array | None = None,
) -> jax.Array:
    """W_2(c) act(W_1(c) h + b_1(c)) + b_2(c) of {"fc1", "fc2"} with (out, in) weights and biases.

    Args:
        activation: between the two maps.
        base: {"fc1", "fc2"} -> {"weight", "bias"} of the base model.
        tau: the task vectors of the same, with a leading axis T (behind that of layers).
        h: [B, L, D].
        coefficients: [G, T], of G equal groups of consecutive samples.
        strategy: "auto" is `choose`.
        chunk, block: see `Choice`; None: what `choose` says.
        layer: index into a leading layer axis that all leaves of `base` and `tau` then have. Slices
            are read where they are needed, without a copy of the whole layer.

    Returns:
        [B, L, D']. Differentiable in everything; what isn't asked for isn't computed.

    Raises:
        ValueError: an unknown strategy.
    """
    groups, tasks = coefficients.shape
    tokens = h.shape[0] * h.shape[1] // groups
    first = base["fc1"]["weight"]
    units, width = first.shape[-2:]
    weights = 2 * units * width
    best = choose(groups, tokens, tasks, weights, units, first.dtype.itemsize)
    if strategy == "auto":
        strategy = best.strategy
    block = best.block if block is None else block
    if strategy in ("blocks", "fused"):
        if layer is None:
            base, tau = jax.tree.map(lambda leaf: leaf[None], (base, tau))
        index = jnp.int32(0) if layer is None else layer
        grouped = h.reshape(groups, tokens, width)  # [G, M, D]
        way = in_blocks if strategy == "blocks" else fused_mlp
        out = way(activation, block, base, tau, grouped, coefficients, index)
        return out.reshape(*h.shape[:-1], out.shape[-1])  # [B, L, D']
    if layer is not None:
        base, tau = jax.tree.map(lambda leaf: leaf[layer], (base, tau))
    if strategy == "expertwise":
        return _expertwise(activation, base, tau, h, coefficients)
    if strategy != "merge":
        raise ValueError(
            f"strategy: expected auto, merge, blocks, expertwise or fused, got {strategy!r}"
        )

    def mlp(params: Any, h: jax.Array) -> jax.Array:
        return _linear(params["fc2"], activation(_linear(params["fc1"], h)))

    return apply_merged(mlp, base, tau, h, coefficients, best.chunk if chunk is None else chunk)


def in_blocks(
    activation: Callable[[jax.Array], jax.Array],
    block: int,
    base: Any,
    tau: Any,
    x: jax.Array,
    coefficients: jax.Array,
    layer: jax.Array,
) -> jax.Array:
    """The merged MLP of one layer, `block` hidden units at a time.

    On CPU one group after the other, whose merged block of a few hundred kB is used while it is in
    the cache; the backward pass, and accelerators, take all groups at once.

    Args:
        activation: between the two maps.
        block: hidden units at a time, static.
        base, tau: with a leading layer axis, as `layer` chooses one.
        x: [G, M, D].
        coefficients: [G, T].
        layer: [] int, the layer's index.

    Returns:
        [G, M, D']
    """
    in_turn = jax.default_backend() == "cpu" and len(x) > 1
    forward = partial(sum_of_blocks, activation, block, in_turn)
    backward = partial(sum_of_blocks, activation, block, False)
    return with_gradient_of(backward, forward)(base, tau, x, coefficients, layer)


def fused_mlp(
    activation: Callable[[jax.Array], jax.Array],
    block: int,
    base: Any,
    tau: Any,
    x: jax.Array,
    coefficients: jax.Array,
    layer: jax.Array,
) -> jax.Array:
    """`in_blocks` with its values from a kernel (`fused.merged_linear`).

    Args:
        activation: between the two maps.
        block: hidden units at a time in the backward pass, static.
        base, tau: with a leading layer axis, as `layer` chooses one.
        x: [G, M, D].
        coefficients: [G, T].
        layer: [] int, the layer's index.

    Returns:
        [G, M, D'].
    """

    def forward(base: Any, tau: Any, x: jax.Array, c: jax.Array, layer: jax.Array) -> jax.Array:
        base, tau = jax.tree.map(lambda leaf: leaf[layer], (base, tau))
        hidden = activation(merged_linear(x, c, base["fc1"], tau["fc1"]))
        return merged_linear(hidden, c, base["fc2"], tau["fc2"])

    backward = partial(sum_of_blocks, activation, block, False)
    return with_gradient_of(backward, forward)(base, tau, x, coefficients, layer)


def with_gradient_of(backward: Callable, forward: Callable) -> Callable:
    """A function that has the values of one and the gradient of another; they must be the same.

    Only gradients that are asked for are computed, so that those of frozen weights never exist,
    and only the arguments are kept for them.
    """

    @jax.custom_vjp
    def call(*arguments: Any) -> Any:
        return forward(*arguments)

    def run(*primals: Any) -> tuple[Any, tuple[Any, _Asked]]:
        arguments = jax.tree.map(lambda p: p.value, primals)
        asked = tuple(any(p.perturbed for p in jax.tree.leaves(own)) for own in primals)
        return call(*arguments), (arguments, _Asked(asked))

    def pull(residuals: tuple[Any, _Asked], cotangent: jax.Array) -> tuple[Any, ...]:
        arguments, asked = residuals[0], residuals[1].arguments

        def of_asked(*wanted: Any) -> Any:
            given = iter(wanted)
            return backward(
                *(next(given) if a else v for a, v in zip(asked, arguments, strict=True))
            )

        wanted = [value for a, value in zip(asked, arguments, strict=True) if a]
        gradients = iter(jax.vjp(of_asked, *wanted)[1](cotangent))
        return tuple(next(gradients) if a else None for a in asked)

    call.defvjp(run, pull, symbolic_zeros=True)
    return call


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Asked:
    """Which arguments are differentiated: known while tracing."""

    arguments: tuple[bool, ...]


def sum_of_blocks(
    activation: Callable,
    block: int,
    in_turn: bool,
    base: Any,
    tau: Any,
    x: jax.Array,
    c: jax.Array,
    layer: jax.Array,
) -> jax.Array:
    """`in_blocks`, of groups one after the other or all at once.

    Args:
        activation: between the two maps.
        block: hidden units at a time, static.
        in_turn: one group after the other, not all at once; static.
        base, tau: with a leading layer axis, as `layer` chooses one.
        x: [G, M, D].
        c: coefficients [G, T].
        layer: [] int, the layer's index.

    Returns:
        [G, M, D'], summed up in float32 at least.
    """

    def contribution(start: Any, x: jax.Array, c: jax.Array, size: int) -> jax.Array:
        """The output of hidden units start, ..., start + size - 1; [G, M, D']."""
        cut = partial(_cut, layer=layer, start=start, size=size)
        weights = [
            (cut(base[name][part], axis), cut(tau[name][part], axis + 1))
            for name, part, axis in (("fc1", "weight", 1), ("fc1", "bias", 1), ("fc2", "weight", 2))
        ]

        def one(x: jax.Array, c: jax.Array) -> jax.Array:
            w1, b1, w2 = ((w + mix(c, v)).astype(w.dtype) for w, v in weights)
            return activation(x @ w1.T + b1) @ w2.T

        if len(c) == 1:
            return one(x[0], c[0])[None]
        return jax.lax.map(lambda own: one(*own), (x, c)) if in_turn else jax.vmap(one)(x, c)

    def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        return total + jax.checkpoint(partial(contribution, size=block))(start, x, c), None

    origin, vectors = base["fc2"]["bias"][layer], tau["fc2"]["bias"][layer]
    bias = (origin + mix(c, vectors)).astype(origin.dtype)
    dtype = jnp.result_type(x, *jax.tree.leaves(base))
    total = jnp.broadcast_to(bias[:, None], (*x.shape[:2], bias.shape[-1]))  # [G, M, D']
    total = total.astype(jnp.promote_types(dtype, jnp.float32))  # a sum of many blocks
    whole, rest = divmod(base["fc1"]["bias"].shape[-1], block)
    total, _ = jax.lax.scan(add, total, block * jnp.arange(whole, dtype=layer.dtype))
    total = total + contribution(whole * block, x, c, rest) if rest else total
    return total.astype(dtype)


def _cut(leaf: jax.Array, axis: int, layer: Any, start: Any, size: int) -> jax.Array:
    """leaf[layer] from `start` on along an axis of `leaf`, `size` entries."""
    starts, sizes = [layer] + [0] * (leaf.ndim - 1), [1, *leaf.shape[1:]]
    starts[axis], sizes[axis] = start, size
    starts = [jnp.asarray(place, jnp.int32) for place in starts]  # of one type, also with x64
    return jax.lax.dynamic_slice(leaf, starts, sizes)[0]


def _expertwise(
    activation: Callable, base: Any, tau: Any, h: jax.Array, coefficients: jax.Array
) -> jax.Array:
    def layer(name: str, x: jax.Array) -> jax.Array:
        """x [G, M, in]; all experts in one product over (t, in)."""
        scaled = coefficients[:, :, None, None] * x[:, None]  # [G, T, M, in]
        # [G, M, out]
        changed = jnp.einsum("gtmi,toi->gmo", scaled.astype(x.dtype), tau[name]["weight"])
        bias = base[name]["bias"] + mix(coefficients, tau[name]["bias"])  # [G, out]
        return (x @ base[name]["weight"].T + changed + bias[:, None]).astype(x.dtype)

    x = h.reshape(len(coefficients), -1, h.shape[-1])  # [G, M, D]
    out = layer("fc2", activation(layer("fc1", x)))
    return out.reshape(*h.shape[:-1], out.shape[-1])  # [B, L, D']


def _linear(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["weight"].T + params["bias"]

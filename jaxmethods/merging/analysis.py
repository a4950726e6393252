r"""Which parts of a network fine-tuning changes, and how much experts disagree about them.

The critical modules are those that fine-tuning moves most: keep their task vectors apart and merge
the rest (section on module analysis of E-WEMoE, arXiv 2410.21804: in CLIP's towers, the MLPs).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.merging.static.trees import Tree, is_merged, leaves_with_names, task_vectors

CLIP_MODULES = {
    "embeddings": r"(^|/)embeddings/",
    "attention": r"/self_attn/",
    "mlp": r"/mlp/",
    "norms": r"layer_?norm|layrnorm",
}
"""Parts of a CLIP tower as patterns of leaf paths."""


class Variation(NamedTuple):
    """What fine-tuning did to one part; all [T] except the last."""

    distance: jax.Array
    """|tau_t|, L2."""
    relative: jax.Array
    """|tau_t| / |theta_0|: the measure of how critical a part is."""
    cosine: jax.Array
    """Between theta_t and theta_0."""
    conflict: jax.Array
    """[] share of the entries whose task vectors don't all have one sign."""


def variation(base: Tree, stack: Tree, modules: Mapping[str, str] = CLIP_MODULES) -> dict:
    """Module -> `Variation`.

    Args:
        modules: name -> regular expression searched in leaf paths; a leaf may be in several.

    Raises:
        ValueError: a pattern names no leaf, or the trees don't match.
    """
    tau = dict(leaves_with_names(task_vectors(base, stack)))
    leaves = [(path, leaf) for path, leaf in leaves_with_names(base) if is_merged(leaf)]
    found = {}
    for name, pattern in modules.items():
        members = [(leaf, tau[path]) for path, leaf in leaves if re.search(pattern, path)]
        if not members:
            raise ValueError(f"modules: {name!r}: no leaf has {pattern!r} in its path")
        found[name] = _of_members(members)
    return found


def critical_modules(base: Tree, stack: Tree, modules: Mapping[str, str] = CLIP_MODULES) -> list:
    """Names of the modules, the one that fine-tuning changed most (relatively) first."""
    changes = variation(base, stack, modules)
    return sorted(changes, key=lambda name: -float(jnp.mean(changes[name].relative)))


def _of_members(members: list[tuple[jax.Array, jax.Array]]) -> Variation:
    def total(function: Callable[..., jax.Array]) -> jax.Array:
        return functools.reduce(jnp.add, [function(*member) for member in members])

    def rows(vectors: jax.Array) -> jax.Array:
        return vectors.reshape(len(vectors), -1)

    moved = jnp.sqrt(total(lambda leaf, tau: jnp.sum(jnp.square(rows(tau)), 1)))
    length = jnp.sqrt(total(lambda leaf, tau: jnp.sum(jnp.square(leaf.astype(tau.dtype)))))
    along = total(lambda leaf, tau: rows(tau) @ leaf.astype(tau.dtype).ravel())
    expert = jnp.sqrt(jnp.maximum(length**2 + 2 * along + moved**2, 0))
    cosine = (length**2 + along) / jnp.maximum(length * expert, 1e-30)
    differ = total(
        lambda leaf, tau: jnp.sum(
            jnp.any(tau > 0, axis=0) & jnp.any(tau < 0, axis=0), dtype=jnp.float32
        )
    )
    size = sum(leaf.size for leaf, _ in members)
    return Variation(moved, moved / jnp.maximum(length, 1e-30), cosine, differ / max(size, 1))

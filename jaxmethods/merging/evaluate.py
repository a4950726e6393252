"""What merged models are worth: accuracy of each task, distance to the experts, routing.

One pure function, `measure`, takes all contestants of a seed. Labels are read here only, and what
an earlier stage has encoded (by the experts, by task arithmetic) is not encoded again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.layout import Rule
from jaxmethods.merging.adaptive import surgery, wemoe
from jaxmethods.merging.adaptive.adaptation import Heads, classify, take
from jaxmethods.merging.config import WEMoEConfig
from jaxmethods.merging.finetuning import Base, Images, to_pixels
from jaxmethods.merging.static.trees import Tree
from jaxmethods.models.clip import vit
from jaxmethods.models.clip.vit import VisionConfig
from jaxmethods.numerics.predictions import right

PLAIN = ("average", "task_arithmetic", "ties", "adamerging")
"""Merges that are towers like the base."""
ROUTED = ("wemoe", "ewemoe")
ROWS = {
    "base": "Base",
    "individual": "Individual experts",
    "average": "Weight averaging",
    "task_arithmetic": "Task arithmetic",
    "ties": "TIES",
    "adamerging": "AdaMerging (layer-wise)",
    "wemoe": "WEMoE",
    "wemoe_batch": "WEMoE, batch routing",
    "ewemoe": "E-WEMoE",
    "ewemoe_batch": "E-WEMoE, batch routing",
    "surgery": "Task arithmetic + Surgery",
    "surgery_v2": "Task arithmetic + SurgeryV2",
}
"""Rows of every table, name to title. Surgeries correct task arithmetic; `_batch` routes all images
of a batch of one task alike, so that the model sees one task at a time."""
METHODS = tuple(ROWS)

RULES = (
    Rule(r"^stack/", ("fsdp",)),
    Rule(r"^test/(images|labels)$", ("data",)),
    Rule(r"^(experts|merged)/(features|means)$", ("data",)),
    *wemoe.RULES,
)
"""How `Contestants` are split: experts over `fsdp`, tasks' images over `data`."""


PER_SEED = ("^(base|heads|plain|routed|surgery|surgery_v2|experts|merged)/",)
"""Leaves of `Contestants` with an axis of seeds: all but the test images."""


class Encoded(NamedTuple):
    """What a model makes of images of every task."""

    features: Any
    """[T, b, P]"""
    means: Any
    """[T, N, b, D]: mean over tokens after every block."""


class Contestants(NamedTuple):
    """All models of one seed and what they are tested on."""

    test: Images
    base: Base
    heads: Heads
    experts: Encoded
    """Features of all test images [T, n], each by its task's expert."""
    merged: Encoded
    """The same by task arithmetic."""
    plain: Tree
    """Towers [4, ...] in the order of `PLAIN`."""
    routed: dict[str, tuple[wemoe.Upcycled, Any]]
    """Name of `ROUTED` -> model and routers."""
    surgery: surgery.Modules
    surgery_v2: surgery.Modules


class Results(NamedTuple):
    """A pytree of arrays; M methods in the order of `METHODS`, N blocks."""

    accuracy: jax.Array
    """[M, T]"""
    distance: jax.Array
    """[M, T, N + 1]: mean absolute difference from the task's expert, of the mean over tokens after
    every block and, last, of the features."""
    routing: dict[str, jax.Array]
    """Name of `ROUTED` -> [modules, N, T, T]: what weight images of a task (first T) give to the
    task vector of a task (second T), on average."""


def metrics(results: Results) -> dict[str, jax.Array]:
    """Mean accuracy over tasks of every method, [seeds], of results with a leading seed axis."""
    means = results.accuracy.mean(-1)
    return {f"{name}_accuracy": means[:, place] for place, name in enumerate(METHODS)}


def encode(
    tower: Tree, projection: jax.Array, vision: VisionConfig, pixels: jax.Array, **options: Any
) -> tuple[jax.Array, jax.Array]:
    """Features and token means of images.

    Args:
        tower: a vision tower's parameters.
        projection: [P, D].
        vision: the tower's sizes; static.
        pixels: [b, H, W, 3] normalized.
        options: further ones of `vit.forward`.

    Returns:
        Features [b, P] and token means [N, b, D].
    """
    out = vit.forward(
        tower, vision, pixels, projection=projection, taps=("token_means",), **options
    )
    assert out.encoded.token_means is not None
    return out.features, out.encoded.token_means


def measure(
    batch: Contestants,
    vision: VisionConfig,
    routed: dict[str, WEMoEConfig],
    size: int,
    logit_scale: float,
) -> Results:
    """Runs all contestants on all test images.

    Args:
        batch: the models and the test images.
        vision: sizes of the towers; static.
        routed: name of `ROUTED` -> its config.
        size: images of each task that are encoded (and, in batch routing, routed) together.
        logit_scale: exp(s), what cosines are multiplied by.

    Returns:
        Means over each task's test images.
    """
    longest = batch.test.labels.shape[1]
    counts = batch.test.counts[:, None]

    def one(start: jax.Array) -> Results:
        place = start + jnp.arange(size)
        # Places past the end repeat images, so that batches that route together are all real.
        indices = place % counts
        pixels = to_pixels(take(batch.test.images, indices))
        known = [_chosen(encoded, indices) for encoded in (batch.experts, batch.merged)]
        outputs, routing = _encode_all(batch, vision, routed, pixels, *known)
        logits = jax.vmap(lambda z: classify(z, batch.heads, jnp.log(logit_scale)))(
            outputs.features
        )
        real = (place < counts).astype(jnp.float32)  # [T, b]
        correct = right(logits, take(batch.test.labels, indices))
        expert = jax.tree.map(lambda leaf: leaf[METHODS.index("individual")], outputs)
        of_means = jnp.mean(jnp.abs(outputs.means - expert.means), -1)  # [M, T, N, b]
        of_features = jnp.mean(jnp.abs(outputs.features - expert.features), -1)  # [M, T, b]
        distance = jnp.concatenate([of_means, of_features[:, :, None]], 2)
        return Results(
            jnp.sum(correct * real, -1),
            jnp.sum(distance * real[:, None], -1),
            {name: jnp.einsum("mntbe,tb->mnte", value, real) for name, value in routing.items()},
        )

    def add(total: Results, start: jax.Array) -> tuple[Results, None]:
        return jax.tree.map(jnp.add, total, one(start)), None

    shapes = jax.eval_shape(one, jnp.int32(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, jnp.arange(-(-longest // size)) * size)
    return Results(
        total.accuracy / counts[:, 0],
        total.distance / counts,
        {name: value / counts for name, value in total.routing.items()},
    )


def _chosen(encoded: Encoded, indices: jax.Array) -> Encoded:
    """The entries of images [T, b] alone."""
    means = jax.vmap(lambda means, place: means[:, place])(encoded.means, indices)
    return Encoded(take(encoded.features, indices), means)


def _encode_all(
    batch: Contestants,
    vision: VisionConfig,
    routed: dict[str, WEMoEConfig],
    pixels: jax.Array,
    experts: Encoded,
    merged: Encoded,
) -> tuple[Encoded, dict[str, jax.Array]]:
    """Every method's `Encoded` with a leading method axis; sample routing [modules, N, T, b, T]."""
    tasks, size = pixels.shape[:2]
    flat = pixels.reshape(-1, *pixels.shape[2:])
    projection = batch.base.projection

    def split(features: jax.Array, means: jax.Array) -> Encoded:
        by_task = means.reshape(len(means), tasks, size, -1)
        return Encoded(features.reshape(tasks, size, -1), by_task.swapaxes(0, 1))

    def plain(tower: Tree) -> Encoded:
        return split(*encode(tower, projection, vision, flat))

    def corrected(model: Any, pixels: jax.Array, after: Any, corrections: Any) -> Any:
        hooks = vit.Hooks(after=after)
        tower, projection = model
        return encode(tower, projection, vision, pixels, hooks=hooks, per_layer=corrections)

    found = {"base": plain(batch.base.tower), "individual": experts, "task_arithmetic": merged}
    others = [place for place, name in enumerate(PLAIN) if name not in found]
    merges = jax.lax.map(plain, jax.tree.map(lambda leaf: leaf[jnp.array(others)], batch.plain))
    for row, place in enumerate(others):
        found[PLAIN[place]] = jax.tree.map(lambda leaf, i=row: leaf[i], merges)
    routing = {}
    for name, (model, routers) in batch.routed.items():
        for suffix, groups in (("", None), ("_batch", tasks)):
            out = wemoe.forward(
                model, routers, vision, routed[name], flat,
                groups=groups, projection=projection, taps=("token_means",),
            )  # fmt: skip
            means = out.vision.encoded.token_means
            assert means is not None
            found[name + suffix] = split(out.vision.features, means)
            if groups is None:
                chosen = jnp.stack([out.coefficients[m] for m in routed[name].modules])
                routing[name] = chosen.reshape(*chosen.shape[:2], tasks, size, tasks)
    features = surgery.correct_features(batch.surgery, merged.features)
    found["surgery"] = Encoded(features, merged.means)
    tower = jax.tree.map(lambda leaf: leaf[PLAIN.index("task_arithmetic")], batch.plain)
    found["surgery_v2"] = Encoded(
        *surgery.encode_corrected(corrected, (tower, projection), batch.surgery_v2, pixels)
    )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[found[m] for m in METHODS]), routing

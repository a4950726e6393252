"""What merged models are worth: accuracy of each task, distance to the experts, routing.

The whole evaluation is one step of a `Method`, so that it is jitted, vmapped over seeds, kept with
the run's checkpoints and not computed again when a run goes on. Labels are read here only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.merging import surgery, wemoe
from jaxmethods.merging.adaptation import Heads, classify, right, take
from jaxmethods.merging.config import WEMoEConfig
from jaxmethods.merging.finetuning import Base, Images, to_pixels
from jaxmethods.merging.trees import Tree
from jaxmethods.method import Method, Metrics, Rule
from jaxmethods.models import vit
from jaxmethods.models.vit import VisionConfig

PLAIN = ("average", "task_arithmetic", "ties", "adamerging")
"""Merges that are towers like the base."""
ROUTED = ("wemoe", "ewemoe")
METHODS = (
    "base",
    "individual",
    *PLAIN,
    *(f"{name}{routing}" for name in ROUTED for routing in ("", "_batch")),
    "surgery",
    "surgery_v2",
)
"""Rows of every table. Surgeries correct task arithmetic; `_batch` routes all images of a batch of
one task alike, which tells the model what task they are of."""

RULES = (
    Rule(r"^stack/", ("fsdp",)),
    Rule(r"^test/(images|labels)$", ("data",)),
    *wemoe.RULES,
)
"""Of `Contestants`: experts over `fsdp`, tasks' images over `data`."""


class Contestants(NamedTuple):
    """All models of one seed and what they are tested on."""

    test: Images
    base: Base
    stack: Tree
    """Experts [T, ...]."""
    heads: Heads
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


def tester(
    vision: VisionConfig, routed: dict[str, WEMoEConfig], batch_size: int, logit_scale: float
) -> Method:
    """Makes the evaluation: `init` gives empty `Results`, `step` the results of `Contestants`.

    Args:
        routed: name of `ROUTED` -> its config.
        batch_size: images of each task that are encoded (and, in batch routing, routed) together.
    """

    def measure(batch: Contestants) -> Results:
        return _measure(batch, vision, routed, batch_size, logit_scale)

    def init(key: jax.Array, batch: Contestants) -> Results:
        del key
        return jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(measure, batch)
        )

    def step(state: Results, batch: Contestants) -> tuple[Results, Metrics]:
        del state
        results = measure(batch)
        return results, {"mean_accuracy": jnp.mean(results.accuracy)}

    return Method(init, step)


def judge(states: Results, batch: Contestants, keys: jax.Array) -> Metrics:
    """Mean accuracy over tasks of every method, [seeds]."""
    del batch, keys
    means = jnp.mean(states.accuracy, axis=-1)
    return {f"{name}_accuracy": means[:, place] for place, name in enumerate(METHODS)}


def encode(
    tower: Tree, projection: jax.Array, vision: VisionConfig, pixels: jax.Array, **options: Any
) -> tuple[jax.Array, jax.Array]:
    """Features [b, P] and token means [N, b, D] of pixels [b, H, W, 3]."""
    out = vit.forward(
        tower, vision, pixels, projection=projection, taps=("token_means",), **options
    )
    assert out.encoded.token_means is not None
    return out.features, out.encoded.token_means


class Encoded(NamedTuple):
    """What a model makes of a batch of every task."""

    features: jax.Array
    """[T, b, P]"""
    means: jax.Array
    """[T, N, b, D]"""


def _measure(
    batch: Contestants,
    vision: VisionConfig,
    routed: dict[str, WEMoEConfig],
    size: int,
    logit_scale: float,
) -> Results:
    longest = batch.test.labels.shape[1]
    counts = batch.test.counts[:, None]

    def one(start: jax.Array) -> Results:
        place = start + jnp.arange(size)
        # Places past the end repeat images, so that batches that route together are all real.
        indices = place % counts
        pixels = to_pixels(take(batch.test.images, indices))
        outputs, routing = _encode_all(batch, vision, routed, pixels)
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


def _encode_all(
    batch: Contestants, vision: VisionConfig, routed: dict[str, WEMoEConfig], pixels: jax.Array
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

    def own(tower: Tree, pixels: jax.Array) -> Encoded:
        return Encoded(*encode(tower, projection, vision, pixels))

    def corrected(model: Any, pixels: jax.Array, after: Any, corrections: Any) -> Any:
        hooks = vit.Hooks(after=after)
        tower, projection = model
        return encode(tower, projection, vision, pixels, hooks=hooks, per_layer=corrections)

    found = {"base": plain(batch.base.tower), "individual": jax.vmap(own)(batch.stack, pixels)}
    merges = jax.lax.map(plain, batch.plain)
    for place, name in enumerate(PLAIN):
        found[name] = jax.tree.map(lambda leaf, i=place: leaf[i], merges)
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
    merged = found["task_arithmetic"]
    features = surgery.correct_features(batch.surgery, merged.features)
    found["surgery"] = Encoded(features, merged.means)
    tower = jax.tree.map(lambda leaf: leaf[PLAIN.index("task_arithmetic")], batch.plain)
    found["surgery_v2"] = Encoded(
        *surgery.encode_corrected(corrected, (tower, projection), batch.surgery_v2, pixels)
    )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[found[m] for m in METHODS]), routing

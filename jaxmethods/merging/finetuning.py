r"""What there is to merge: a base with few labels, its frozen heads, and one expert for each task.

    base      min over theta_0, V, heads   CE over the classes of all tasks together, on a labeled
                                           share of every task, and CE of the task alone (the sum
                                           of its classes' probabilities) on all of its images
    heads     h_tc = normalize(mean_{x of class c} z(x) - mean_x z(x)),    z = V f(x; theta_0) / |.|
    experts   min over theta_t             CE_t                on all of task t, V and heads frozen

with logits exp(s) z h^T. Prototypes take the place of CLIP's zero-shot heads: they come from the
base alone and stay as they are, so that features of base, experts and merged models can be compared
(setting of Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv 2212.04089).
One space for the classes of all tasks, as CLIP has it, keeps the tasks' features apart; without it
an expert moves what the others need.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmethods.data.images import Split
from jaxmethods.layout import Rule
from jaxmethods.merging.adaptive.adaptation import Heads, Unlabeled, classify, draw_indices, take
from jaxmethods.merging.config import BaseConfig, ExpertsConfig, TrainingConfig
from jaxmethods.merging.static.trees import Tree, map_with_names
from jaxmethods.method import Method, Metrics, Objective, gradient_step
from jaxmethods.models.clip import vit
from jaxmethods.models.clip.network import normalize
from jaxmethods.models.clip.vit import VisionConfig

IMAGES_RULES = (Rule(r"^(images|labels)$", ("data",)),)
"""How `Images` by themselves are split: tasks over `data`."""
BASE_RULES = (Rule(r"^images/(images|labels)$", ("data",)),)
"""How a `BaseBatch` is split: tasks over `data`; gradients of the base are added up."""
EXPERTS_RULES = (
    Rule(r"^(stack|optimizer|heads)/", (("fsdp", "data"),)),
    Rule(r"^images/(images|labels)$", (("fsdp", "data"),)),
)
"""How an `ExpertsState` and an `ExpertsBatch` are split: tasks over all devices, over `fsdp` first.
An expert and its images are on one device, and nothing is exchanged."""


class Images(NamedTuple):
    """Labeled images of T tasks; tasks with fewer than n are padded at the end."""

    images: jax.Array
    """[T, n, H, W, 3] uint8"""
    labels: jax.Array
    """[T, n] int32"""
    counts: jax.Array
    """[T] int32: how many of each task are real."""
    classes: jax.Array
    """[T, C] bool: which classes the task has."""


class Base(NamedTuple):
    """What experts start from."""

    tower: Tree
    """theta_0, a vision tower (`vit.init`)."""
    projection: jax.Array
    """V [P, D]"""


class Start(NamedTuple):
    """What a base hands on."""

    base: Base
    heads: Heads


class BaseBatch(NamedTuple):
    """What the base is trained on."""

    images: Images
    """All, of which it uses only the labels of the first ones."""
    labeled: jax.Array
    """[T] int32: how many of each task those are."""
    start: Base | None = None
    """Where it begins; None: with random weights."""


class BaseState(NamedTuple):
    """A pytree of arrays."""

    key: jax.Array
    base: Any
    """`Base`"""
    heads: jax.Array
    """[T, C, P]: of the pre-training only."""
    optimizer: optax.OptState
    step: jax.Array


class ExpertsBatch(NamedTuple):
    """What experts are trained on."""

    images: Images
    base: Base
    heads: Heads


class ExpertsState(NamedTuple):
    """A pytree of arrays; everything of the experts has a leading task axis."""

    key: jax.Array
    stack: Tree
    optimizer: optax.OptState
    step: jax.Array


def stack_images(splits: Sequence[Split], classes: Sequence[int]) -> Images:
    """Puts tasks' images into one array, padded with zeros."""
    counts = [len(split.labels) for split in splits]

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, [(0, max(counts) - len(values)), *[(0, 0)] * (values.ndim - 1)])

    return Images(
        jnp.asarray(np.stack([padded(split.images) for split in splits])),
        jnp.asarray(np.stack([padded(split.labels) for split in splits])),
        jnp.asarray(counts, jnp.int32),
        jnp.asarray(np.arange(max(classes)) < np.asarray(classes)[:, None]),
    )


def count_labeled(images: Images, share: float) -> jax.Array:
    """[T] int32: the share of each task's images, one at least."""
    return jnp.maximum(1, jnp.round(share * images.counts)).astype(jnp.int32)


def stratified(split: Split, seed: int) -> Split:
    """The same images in an order of which every beginning has all classes in proportion."""
    random = np.random.default_rng(seed)
    place = np.empty(len(split.labels))
    for label in np.unique(split.labels):
        (members,) = np.nonzero(split.labels == label)
        place[random.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.argsort(place, kind="stable")
    return Split(split.images[order], split.labels[order])


def to_pixels(images: jax.Array) -> jax.Array:
    """uint8 -> float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def shift(key: jax.Array, images: jax.Array, most: int) -> jax.Array:
    """Moves every image [n, H, W, C] by up to `most` pixels; edges are repeated."""
    if most == 0:
        return images
    wide = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * most + 1)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(cut)(wide, corners)


def pretrainer(vision: VisionConfig, config: BaseConfig, logit_scale: float) -> Method:
    """Makes the training of the base with one cosine classifier of all tasks; takes a `BaseBatch`.

    A step takes as many labeled as unlabeled images of each task.
    """
    optimizer = make_optimizer(config)

    def init(key: jax.Array, batch: BaseBatch) -> BaseState:
        key, *keys = jax.random.split(key, 4)
        width = vision.projection_dim
        base = batch.start or init_base(keys[0], keys[1], vision)
        heads = jax.random.normal(keys[2], (*batch.images.classes.shape, width)) * width**-0.5
        return BaseState(key, base, heads, optimizer.init((base, heads)), jnp.int32(0))

    def objective(params: Any, pixels: jax.Array, labels: jax.Array, classes: jax.Array) -> Any:
        base, heads = params
        tasks = jnp.arange(len(classes))
        z = normalize(encode(base, vision, pixels))  # [T, 2 b, P]
        logits = logit_scale * jnp.einsum("tbp,scp->tbsc", z, normalize(heads))
        logits = jnp.where(classes, logits, -jnp.inf)
        total = jax.nn.logsumexp(logits, axis=(2, 3))
        own = logits[tasks, :, tasks]  # [T, 2 b, C]
        supervised = own[:, : labels.shape[1]]
        right = jnp.take_along_axis(supervised, labels[..., None], 2)[..., 0]
        of_class = jnp.mean(total[:, : labels.shape[1]] - right)
        of_task = jnp.mean((total - jax.nn.logsumexp(own, -1))[:, labels.shape[1] :])
        accuracy = jnp.mean(jnp.argmax(supervised, -1) == labels)
        metrics = {"loss": of_class, "task_loss": of_task, "accuracy": accuracy}
        return of_class + of_task, metrics

    def drawn(keys: Any, batch: BaseBatch) -> tuple[Any, Any, Any]:
        seen = batch.images._replace(counts=batch.labeled)
        pixels, labels = draw(keys[0], seen, config)
        others, _ = draw(keys[1], batch.images, config)
        return jnp.concatenate([pixels, others], 1), labels, batch.images.classes

    def step(state: BaseState, batch: BaseBatch) -> tuple[BaseState, Metrics]:
        key, *keys = jax.random.split(state.key, 3)
        (_, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(
            (state.base, state.heads), *drawn(keys, batch)
        )
        params = state.base, state.heads
        (base, heads), moments = gradient_step(optimizer, gradient, state.optimizer, params)
        return BaseState(key, base, heads, moments, state.step + 1), metrics

    def watched(state: BaseState, batch: BaseBatch) -> Objective:
        def loss(params: Any, key: jax.Array) -> jax.Array:
            return objective(params, *drawn(jax.random.split(key), batch))[0]

        return Objective((state.base, state.heads), loss)

    return Method(init, step, watched)


def finetuner(vision: VisionConfig, config: ExpertsConfig, logit_scale: float) -> Method:
    """Makes the training of all experts at once; takes an `ExpertsBatch`."""
    optimizer = make_optimizer(config)

    def init(key: jax.Array, batch: ExpertsBatch) -> ExpertsState:
        tasks = len(batch.heads.classes)
        stack = jax.tree.map(lambda leaf: jnp.stack([leaf] * tasks), batch.base.tower)
        return ExpertsState(key, stack, jax.vmap(optimizer.init)(stack), jnp.int32(0))

    def of_expert(
        tower: Tree, pixels: jax.Array, labels: jax.Array, head: Heads, projection: Any
    ) -> Any:
        features = encode(Base(tower, projection), vision, pixels[None])
        whole = jax.tree.map(lambda leaf: leaf[None], head)
        logits = classify(features, whole, jnp.log(logit_scale))
        return _loss_and_accuracy(logits, labels[None])

    def one(
        tower: Tree,
        moments: Any,
        pixels: jax.Array,
        labels: jax.Array,
        head: Heads,
        projection: Any,
    ) -> Any:
        gradient, metrics = jax.grad(of_expert, has_aux=True)(
            tower, pixels, labels, head, projection
        )
        updates, moments = optimizer.update(gradient, moments, tower)
        updates = map_with_names(_only(config.trained), updates)
        return optax.apply_updates(tower, updates), moments, metrics

    def step(state: ExpertsState, batch: ExpertsBatch) -> tuple[ExpertsState, Metrics]:
        key, batch_key = jax.random.split(state.key)
        pixels, labels = draw(batch_key, batch.images, config)
        stack, moments, metrics = jax.vmap(one, (0, 0, 0, 0, 0, None))(
            state.stack, state.optimizer, pixels, labels, batch.heads, batch.base.projection
        )
        metrics = {name: jnp.mean(value) for name, value in metrics.items()}
        return ExpertsState(key, stack, moments, state.step + 1), metrics

    def watched(state: ExpertsState, batch: ExpertsBatch) -> Objective:
        """The mean loss of all experts."""

        def loss(stack: Tree, key: jax.Array) -> jax.Array:
            pixels, labels = draw(key, batch.images, config)
            axes, projection = (0, 0, 0, 0, None), batch.base.projection
            each = jax.vmap(of_expert, axes)(stack, pixels, labels, batch.heads, projection)
            return jnp.mean(each[0])

        return Objective(state.stack, loss)

    return Method(init, step, watched)


def draw(key: jax.Array, images: Images, config: TrainingConfig) -> tuple[jax.Array, jax.Array]:
    """Pixels [T, b, H, W, 3], shifted, and labels [T, b]; small tasks repeat images."""
    order_key, shift_key = jax.random.split(key)
    size = min(config.batch_size, images.images.shape[1])
    indices = draw_indices(order_key, Unlabeled(images.images, images.counts), size)
    drawn = take(images.images, indices)
    moved = shift(shift_key, drawn.reshape(-1, *drawn.shape[2:]), config.shift)
    return to_pixels(moved).reshape(drawn.shape), take(images.labels, indices)


def encode(base: Base, vision: VisionConfig, pixels: jax.Array) -> jax.Array:
    """Features [T, b, P] of pixels [T, b, H, W, 3]."""
    flat = pixels.reshape(-1, *pixels.shape[2:])
    features = vit.forward(base.tower, vision, flat, projection=base.projection).features
    return features.reshape(*pixels.shape[:2], -1)


def prototypes(base: Base, vision: VisionConfig, images: Images, chunk: int = 64) -> Heads:
    """Heads of class means, see above.

    Args:
        base: the tower and its projection.
        vision: the tower's sizes; static.
        images: labeled images of all tasks.
        chunk: images of each task that are encoded together; static.

    Returns:
        [T, C, P]; zeros for classes that a task doesn't have, or has no image of. These have no
        part in the center of the others; a single class is the center itself, and zeros too.
    """
    tasks, longest = images.labels.shape
    classes = images.classes.shape[1]
    chunks = -(-longest // chunk)
    size = images.counts[:, None]

    def add(total: Any, start: jax.Array) -> tuple[Any, None]:
        place = start + jnp.arange(chunk)
        indices = jnp.broadcast_to(jnp.minimum(place, longest - 1), (tasks, chunk))
        features = encode(base, vision, to_pixels(take(images.images, indices)))
        real = (place < size).astype(features.dtype)
        members = jax.nn.one_hot(take(images.labels, indices), classes) * real[..., None]
        sums = jnp.einsum("tbc,tbp->tcp", members, normalize(features))
        return (total[0] + sums, total[1] + jnp.sum(members, 1)), None

    start = jnp.zeros((tasks, classes, vision.projection_dim)), jnp.zeros((tasks, classes))
    (sums, counts), _ = jax.lax.scan(add, start, jnp.arange(chunks) * chunk)
    means = sums / jnp.maximum(counts, 1)[..., None]
    here = (images.classes & (counts > 0))[..., None]
    number = jnp.maximum(jnp.sum(here, 1, keepdims=True), 1)
    apart = jnp.where(here, means - jnp.sum(means * here, 1, keepdims=True) / number, 0.0)
    norms = jnp.linalg.norm(apart, axis=-1, keepdims=True)
    return Heads(apart / jnp.where(norms > 0, norms, 1), images.classes)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Clipping, then AdamW or SGD, with warm-up and cosine decay."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.steps // 10 + 1, config.steps + 1
    )
    if config.optimizer == "sgd":
        step = optax.sgd(rate, momentum=0.9)
    else:
        step = optax.adamw(rate, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.clip), step)


def init_base(tower_key: jax.Array, projection_key: jax.Array, vision: VisionConfig) -> Base:
    """Random weights of a tower and its projection."""
    projection = jax.random.normal(projection_key, (vision.projection_dim, vision.hidden_size))
    return Base(vit.init(tower_key, vision), projection * vision.hidden_size**-0.5)


def _only(pattern: str) -> Any:
    def keep(path: str, update: jax.Array) -> jax.Array:
        return update if re.search(pattern, path) else jnp.zeros_like(update)

    return keep


def _loss_and_accuracy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, Metrics]:
    """The sum over tasks of the mean cross-entropy, and [T] what is logged."""
    losses = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels), -1)
    right = jnp.mean(jnp.argmax(logits, -1) == labels, -1)
    return jnp.sum(losses), {"loss": losses, "accuracy": right}

r"""Representation Surgery: small corrections that bring a merged model's features to the experts'.

    z^ = z - U_t relu(A_t z)                        on the projected feature (V1)
    x  <- x - U_tl relu(A_tl x)                     on the residual stream after block l (V2)
    L_t = mean |z^ - z_expert|                      V1
    L_t = sum_l mean |mean_tokens x_l - mean_tokens x_expert,l| + mean |z^ - z_expert|      V2

The merged model, the experts and the heads are frozen; labels are never used. U starts at 0, so
that training starts at the merged model itself.

- Yang et al., "Representation Surgery for Multi-Task Model Merging", ICML 2024, arXiv 2402.02705.
- "SurgeryV2: Bridging the Gap Between Model Merging and Multi-Task Learning with Deep
  Representation Surgery", arXiv 2410.14389.

Expert features don't depend on the modules: they are computed once (`Targets`). For V1 neither do
the merged model's, so that a step costs a product of rank r, no network at all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxmethods.layout import Rule
from jaxmethods.merging.adaptive.adaptation import Unlabeled, draw_indices, take
from jaxmethods.merging.config import SurgeryConfig
from jaxmethods.merging.static.trees import compute_dtype
from jaxmethods.method import Method, Metrics, Objective, gradient_step

RULES = (
    Rule(r"(^|/)(modules|unlabeled|targets)(/|$)", ("data",)),
    Rule(r"^optimizer/.*(mu|nu)/", ("data",)),
)
"""How states and batches are split: tasks over `data`; only the merged model is exchanged."""

Encode: TypeAlias = Callable[..., tuple[jax.Array, jax.Array]]
"""(model, inputs [b, ...], correct, corrections) -> (features [b, P], token means [N, b, D]).
`correct(x [b, L, D], corrections of one block)` is applied to the residual stream after every
block; with `vit.forward` these are `hooks.after` and `per_layer`."""


class Modules(NamedTuple):
    """Corrections of T tasks."""

    down: jax.Array
    """A [T, r, P]"""
    up: jax.Array
    """U [T, P, r]"""
    block_down: jax.Array | None = None
    """[T, N, r, D] of SurgeryV2."""
    block_up: jax.Array | None = None
    """[T, N, D, r]"""


class Targets(NamedTuple):
    """What the experts make of their own task's inputs."""

    features: jax.Array
    """[T, n, P]"""
    token_means: jax.Array | None = None
    """[T, n, N, D] of SurgeryV2."""


class Batch(NamedTuple):
    """What corrections are trained on; all of it frozen."""

    unlabeled: Unlabeled
    """V1: `inputs` are the merged model's features [T, n, P]; V2: the inputs themselves."""
    targets: Targets
    model: Any = None
    """V2: the merged model, as `encode` takes it."""


class State(NamedTuple):
    """A pytree of arrays. Adam works entry by entry: tasks don't touch each other."""

    key: jax.Array
    modules: Any
    """`Modules`"""
    optimizer: optax.OptState
    step: jax.Array


def init(
    key: jax.Array,
    tasks: int,
    width: int,
    rank: int,
    blocks: int | None = None,
    block_width: int | None = None,
) -> Modules:
    """A uniform in ±1/sqrt(width), U zero: no correction at all.

    Args:
        key: [] typed random key.
        tasks: T.
        width: P, of the features.
        rank: r.
        blocks, block_width: N and D for SurgeryV2.

    Returns:
        A [T, r, P] and U [T, P, r] in float32, and those of N blocks for SurgeryV2.
    """
    one, two = jax.random.split(key)

    def uniform(key: jax.Array, *shape: int) -> jax.Array:
        bound = shape[-1] ** -0.5
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    zeros = partial(jnp.zeros, dtype=jnp.float32)
    modules = Modules(uniform(one, tasks, rank, width), zeros((tasks, width, rank)))
    if blocks is None or block_width is None:
        return modules
    return modules._replace(
        block_down=uniform(two, tasks, blocks, rank, block_width),
        block_up=zeros((tasks, blocks, block_width, rank)),
    )


def correct(x: jax.Array, down_up: tuple[jax.Array, jax.Array]) -> jax.Array:
    """x - U relu(A x) over the last axis; A [r, D], U [D, r]."""
    down, up = down_up
    return x - jax.nn.relu(x @ down.T) @ up.T


def correct_features(modules: Modules, features: jax.Array) -> jax.Array:
    """z^ of every task's features [T, n, P]."""
    return jax.vmap(correct)(features, (modules.down, modules.up))


def encode_corrected(
    encode: Encode, model: Any, modules: Modules, inputs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """SurgeryV2's corrected features and token means.

    The model is the same for all tasks: its weights aren't copied.

    Args:
        encode: runs the model with a correction after every block.
        model: parameters of the merged model.
        modules: with those of the blocks.
        inputs: [T, b, ...].

    Returns:
        Features [T, b, P] and means over tokens [T, N, b, D].
    """

    def of_block(x: jax.Array, down_up: tuple[jax.Array, jax.Array]) -> jax.Array:
        return correct(x, down_up).astype(x.dtype)  # the residual stream keeps its type

    def one(modules: Modules, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        corrections = (modules.block_down, modules.block_up)
        features, means = encode(model, inputs, of_block, corrections)
        return correct(features, (modules.down, modules.up)), means

    return jax.vmap(one)(modules, inputs)


def aligner(config: SurgeryConfig, encode: Encode | None = None) -> Method:
    """Makes the training of corrections, all tasks in one vmapped step.

    Args:
        config: `deep` chooses SurgeryV2.
        encode: of SurgeryV2, runs the merged model with corrections after every block.

    Returns:
        `init(key, batch)` and `step(state, batch)` for a `Batch`.

    Raises:
        ValueError: SurgeryV2 without `encode`.
    """
    if config.deep and encode is None:
        raise ValueError("encode: expected with deep surgery, got None")
    optimizer = optax.adam(config.learning_rate)

    def start(key: jax.Array, batch: Batch) -> State:
        key, module_key = jax.random.split(key)
        targets = batch.targets
        tasks, _, width = targets.features.shape
        means = targets.token_means if config.deep else None
        deep = () if means is None else means.shape[2:]
        modules: Any = init(module_key, tasks, width, config.rank, *deep)
        return State(key, modules, optimizer.init(modules), jnp.int32(0))

    def drawn(key: jax.Array, batch: Batch) -> tuple[jax.Array, Targets]:
        indices = draw_indices(key, batch.unlabeled, config.batch_size)
        return jax.tree.map(partial(take, indices=indices), (batch.unlabeled.inputs, batch.targets))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key, draw_key = jax.random.split(state.key)
        inputs, targets = drawn(draw_key, batch)
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.modules, batch.model, inputs, targets, config, encode
        )
        modules, moments = gradient_step(optimizer, gradient, state.optimizer, state.modules)
        after = State(key, modules, moments, state.step + 1)
        return after, {"loss": value / len(inputs), "gradient_norm": optax.tree.norm(gradient)}

    def objective(state: State, batch: Batch) -> Objective:
        """The sum over tasks that a step differentiates; its metric `loss` is their mean."""

        def watched(modules: Modules, key: jax.Array) -> jax.Array:
            inputs, targets = drawn(key, batch)
            return loss(modules, batch.model, inputs, targets, config, encode)[0]

        return Objective(state.modules, watched)

    return Method(start, step, objective)


def loss(
    modules: Modules,
    model: Any,
    inputs: jax.Array,
    targets: Targets,
    config: SurgeryConfig,
    encode: Encode | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The sum of all tasks' losses (V1 or V2, see above), and their terms.

    Args:
        modules: what is trained.
        model: parameters of the merged model; not read for V1.
        inputs: [T, b, ...]: features of V1, inputs of V2.
        targets: of those inputs, [T, b, ...].
        config: V1 or V2, L1 or squared error; static.
        encode: runs the model; for V2.

    Returns:
        The sum [], and its terms [T, N + 1] (the features' last), or [T, 1] for V1.
    """

    def distance(one: jax.Array, other: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        dtype = compute_dtype(one, other)  # means of many small errors
        error = one.astype(dtype) - jax.lax.stop_gradient(other.astype(dtype))
        # Not `abs`, whose derivative at 0 is 1 here: an error of 0 must move nothing.
        sign = jax.lax.stop_gradient(jnp.sign(error))
        return jnp.mean(error * (sign if config.loss == "l1" else error), axis=axes)

    if not config.deep:
        features = correct_features(modules, inputs)
        terms = distance(features, targets.features, (1, 2))[:, None]
        return jnp.sum(terms), terms
    assert encode is not None
    assert targets.token_means is not None
    features, means = encode_corrected(encode, model, modules, inputs)
    of_blocks = distance(means.swapaxes(1, 2), targets.token_means, (1, 3))  # [T, N]
    of_features = distance(features, targets.features, (1, 2))
    terms = jnp.concatenate([of_blocks, of_features[:, None]], axis=1)
    return jnp.sum(terms), terms

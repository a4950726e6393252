"""Distillation as a method: one step is one update of the student by `kid_loss`.

    model = of_decoder(student_config), of_decoder(teacher_config)
    method = distiller(*model, optax.adamw(2e-4), KIDConfig(), rows=16, init=init)
    state = method.init(key, data)
    state, metrics = method.step(state, data)

Data goes round in epochs, each in its own order. With `micro_batches`, a batch is run in parts
whose sums are divided by the whole batch's counts: the update is the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxmethods.kid import imperfect
from jaxmethods.kid.config import KIDConfig
from jaxmethods.kid.loss import Batch, Terms, kid_loss, totals
from jaxmethods.kid.model import LanguageModel, Params
from jaxmethods.method import Method, Metrics, gradient_step
from jaxmethods.numerics.keys import named


class Data(NamedTuple):
    """What a distillation is fed."""

    examples: Batch
    """All of them, [N, ...] in place of [B, ...]."""
    teacher: Params
    """The frozen teacher's parameters; None where nothing is compared with them."""


class DistillState(NamedTuple):
    """A student in training."""

    params: Params
    moments: Any
    """The optimizer's."""
    step: jax.Array
    """[] int32."""
    key: jax.Array
    """The run's; never changed, but folded with the step."""


def distiller(
    student: LanguageModel,
    teacher: LanguageModel | None,
    optimizer: optax.GradientTransformation,
    config: KIDConfig,
    *,
    rows: int,
    init: Callable[[jax.Array], Params],
) -> Method:
    """A method that trains a student.

    Args:
        student, teacher: models of one vocabulary; no teacher where `divergence.name` is none.
        optimizer: of the student's parameters.
        config: static.
        rows: B, of a batch.
        init: typed key -> the student's first parameters.

    Returns:
        init and step, for `Data`.

    Raises:
        ValueError: vocabularies of different sizes, rows that don't divide into micro-batches, a
            loss whose parts don't add up with micro-batches; in `step`, fewer examples than rows.
    """
    _check(student, teacher, config, rows)

    def start(key: jax.Array, data: Data) -> DistillState:
        del data
        params = init(named(key, "student"))
        return DistillState(params, optimizer.init(params), jnp.int32(0), key)

    def step(state: DistillState, data: Data) -> tuple[DistillState, Metrics]:
        key = jax.random.fold_in(named(state.key, "steps"), state.step)
        batch = draw_batch(state.key, state.step, data.examples, rows)
        loss, terms, gradient = loss_and_gradient(
            state.params, data.teacher, batch, key, student, teacher, config
        )
        params, moments = gradient_step(optimizer, gradient, state.moments, state.params)
        metrics = {
            "loss": loss,
            "divergence": terms.divergence,
            "likelihood": terms.likelihood,
            "fill_accuracy": terms.right_fills / jnp.maximum(terms.fills, 1),
            "filled": terms.fills / jnp.maximum(jnp.sum(batch.response_mask), 1),
            "gradient_norm": optax.global_norm(gradient),
        }
        return DistillState(params, moments, state.step + 1, state.key), metrics

    return Method(start, step)


def loss_and_gradient(
    params: Params,
    teacher_params: Params,
    batch: Batch,
    key: jax.Array,
    student: LanguageModel,
    teacher: LanguageModel | None,
    config: KIDConfig,
) -> tuple[jax.Array, Terms, Params]:
    """Loss, terms and gradient of a batch, in `config.micro_batches` parts.

    Args:
        params: the student's.
        teacher_params: the teacher's; None where the loss has no teacher.
        batch: B rows, a multiple of `config.micro_batches`.
        key: typed random key, of which every row gets its own, whatever part it is in.
        student, teacher: the models; static.
        config: the loss; static.

    Returns:
        loss [] float32, its terms, and the gradient to `params`.
    """
    whole, parts = totals(batch), config.micro_batches
    keys = imperfect.row_keys(key, batch.prompts.shape[0])

    def part(given: tuple[Batch, jax.Array]) -> tuple[jax.Array, Terms, Params]:
        def loss(params: Params) -> tuple[jax.Array, Terms]:
            return kid_loss(params, teacher_params, *given, student, teacher, config, whole)

        (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, terms, gradient

    if parts == 1:
        return part((batch, keys))

    def split(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(parts, -1, *leaf.shape[1:])  # [M, B / M, ...]

    pieces = jax.tree.map(split, (batch, keys))
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(part, jax.tree.map(lambda x: x[0], pieces)))

    def add(sums: Any, piece: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, part(piece)), None

    return lax.scan(add, zeros, pieces)[0]


def draw_batch(key: jax.Array, step: jax.Array, examples: Batch, rows: int) -> Batch:
    """The batch of a step: rows of this epoch's order, the last incomplete batch left out.

    Args:
        key: typed, the run's.
        step: [] int32.
        examples: [N, ...].
        rows: B.

    Returns:
        [B, ...].

    Raises:
        ValueError: fewer examples than rows.
    """
    number = examples.prompts.shape[0]
    if number < rows:
        raise ValueError(f"rows: expected at most the {number} examples there are, got {rows}")
    steps = number // rows
    order_key = jax.random.fold_in(named(key, "epochs"), step // steps)
    order = jax.random.permutation(order_key, number)
    chosen = lax.dynamic_slice(order, (step % steps * rows,), (rows,))
    return jax.tree.map(lambda leaf: leaf[chosen], examples)


def _check(
    student: LanguageModel, teacher: LanguageModel | None, config: KIDConfig, rows: int
) -> None:
    if teacher is not None and teacher.vocabulary != student.vocabulary:
        raise ValueError(
            f"vocabulary: expected equal sizes, got {student.vocabulary} (student) and "
            f"{teacher.vocabulary} (teacher); language.vocabularies says how many to keep"
        )
    if teacher is None and config.divergence.name != "none":
        raise ValueError(f"teacher: is needed for the divergence {config.divergence.name!r}")
    if rows < 1 or rows % config.micro_batches:
        raise ValueError(
            f"rows: expected a multiple of {config.micro_batches} micro-batches, got {rows}"
        )
    if config.divergence.name == "atkd" and config.micro_batches > 1:
        raise ValueError(
            "micro_batches: expected 1 with the divergence 'atkd', whose threshold is the median "
            f"of the whole batch, got {config.micro_batches}"
        )

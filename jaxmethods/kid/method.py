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
from jaxmethods.kid.config import DivergenceConfig, ImperfectConfig, KIDConfig, SourceConfig
from jaxmethods.kid.loss import Batch, Terms, kid_loss, totals
from jaxmethods.kid.model import LanguageModel, Params
from jaxmethods.kid.responses import (
    Replay,
    Responses,
    begin_replay,
    choose_responses,
    replayed,
    validated,
)
from jaxmethods.method import Method, Metrics, Objective, gradient_step
from jaxmethods.numerics.keys import named


class Data(NamedTuple):
    """What a distillation is fed."""

    examples: Batch
    """All of them, [N, ...] in place of [B, ...]."""
    teacher: Params
    """The frozen teacher's parameters; None where nothing is compared with them."""
    taught: Responses | None = None
    """The teacher's responses to all prompts [N, R], where a source has a share of them."""
    held_back: Batch | None = None
    """[N', ...]: examples whose loss says how often the student's kept responses are shown."""
    base: Params = None
    """What a student begins with; stays as it is where `assemble` adds what is trained."""
    slots: jax.Array | None = None
    """[B] int32, 0 to B - 1: split it over a mesh, and batches are split."""
    key: jax.Array | None = None
    """Typed: where given, the run's key in place of that of `init`, so that several students have
    the same first weights and batches."""


class DistillState(NamedTuple):
    """A student in training."""

    params: Params
    moments: Any
    """The optimizer's."""
    step: jax.Array
    """[] int32."""
    key: jax.Array
    """The run's; never changed, but folded with the step."""
    replay: Replay | None = None
    """What it has written, where it is shown that again."""


Assemble = Callable[[Params, Data], Params]
"""(trained parameters, data) -> the whole student's."""
GOLD = SourceConfig()


def distiller(
    student: LanguageModel,
    teacher: LanguageModel | None,
    optimizer: optax.GradientTransformation,
    config: KIDConfig,
    *,
    rows: int,
    init: Callable[..., Params],
    source: SourceConfig = GOLD,
    steps: int = 0,
    assemble: Assemble | None = None,
) -> Method:
    """A method that trains a student.

    Args:
        student, teacher: models of one vocabulary; no teacher where `divergence.name` is none.
        optimizer: of the student's parameters.
        config: static.
        rows: B, of a batch.
        init: typed key -> the student's first parameters; with `assemble`, (key, data) -> those
            that are trained.
        source: whose responses are learned from, static.
        steps: of the whole training; only `source.replay` asks for it.
        assemble: (trained parameters, data) -> the whole student's, where only a part is trained.

    Returns:
        init and step, for `Data`.

    Raises:
        ValueError: vocabularies of different sizes, rows that don't divide into micro-batches, a
            loss whose parts don't add up with micro-batches, a source that needs what isn't there;
            in `step`, fewer examples than rows.
    """
    _check(student, teacher, config, rows)
    _check_source(student, source, rows, steps)
    whole: Assemble = assemble or (lambda params, data: params)

    def start(key: jax.Array, data: Data) -> DistillState:
        key = key if data.key is None else data.key
        own = named(key, "student")
        params = init(own) if assemble is None else init(own, data)
        length = data.examples.responses.shape[1]
        replay = None if source.replay is None else begin_replay(source.replay, length)
        return DistillState(params, optimizer.init(params), jnp.int32(0), key, replay)

    def step(state: DistillState, data: Data) -> tuple[DistillState, Metrics]:
        key = jax.random.fold_in(named(state.key, "steps"), state.step)
        places = draw_rows(state.key, state.step, data.examples, rows, data.slots)
        full = whole(state.params, data)
        batch, replay, own = _responses(key, places, full, state, data)
        loss, terms, gradient = loss_and_gradient(
            state.params,
            data.teacher,
            batch,
            key,
            student,
            teacher,
            config,
            lambda params: whole(params, data),
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
        if source.student or replay is not None:
            metrics["own_responses"] = own
        if replay is not None:
            metrics["replay_threshold"] = replay.threshold
        return DistillState(params, moments, state.step + 1, state.key, replay), metrics

    def _responses(
        key: jax.Array, places: jax.Array, params: Params, state: DistillState, data: Data
    ) -> tuple[Batch, Replay | None, jax.Array]:
        """The batch of a step, what is kept then, and the share that the student wrote."""
        gold = jax.tree.map(lambda leaf: leaf[places], data.examples)
        frozen, length = lax.stop_gradient(params), gold.responses.shape[1]

        def write(prompts: jax.Array, mask: jax.Array, key: jax.Array) -> Responses:
            assert student.generate is not None
            found = student.generate(frozen, prompts, mask, key, length, source.temperature)
            return Responses(*found)

        if source.replay is not None and state.replay is not None:

            def held_back_loss() -> jax.Array:
                assert data.held_back is not None
                return likelihood(frozen, data.held_back, student, config.logit_chunk)

            seen = validated(state.replay, state.step, held_back_loss, source.replay)
            done = state.step / steps
            return replayed(key, gold, places, data.examples, seen, write, done)
        taught = None
        if data.taught is not None:
            taught = jax.tree.map(lambda leaf: leaf[places], data.taught)
        batch, own = choose_responses(key, gold, taught, write, source)
        return batch, None, own

    def objective(state: DistillState, data: Data) -> Objective:
        """The loss on gold responses of random examples."""

        def loss(params: Params, key: jax.Array) -> jax.Array:
            places = jax.random.randint(key, (rows,), 0, len(data.examples.prompts))
            batch = jax.tree.map(lambda leaf: leaf[places], data.examples)
            keys = imperfect.row_keys(key, rows)
            full = whole(params, data)
            return kid_loss(full, data.teacher, batch, keys, student, teacher, config)[0]

        return Objective(state.params, loss)

    return Method(start, step, objective)


def likelihood(params: Params, batch: Batch, model: LanguageModel, chunk: int) -> jax.Array:
    """Mean of -log q(token) over a batch's responses.

    Args:
        params: of the model.
        batch: prompts and responses.
        model: whose likelihood.
        chunk: tokens whose logits are there at one time.

    Returns:
        [] float32.
    """
    settings = KIDConfig(
        imperfect=ImperfectConfig(rewrite="vanilla"),
        divergence=DivergenceConfig(name="none"),
        share_prefix=False,
        logit_chunk=chunk,
    )
    return kid_loss(params, None, batch, jax.random.key(0), model, None, settings)[0]


def loss_and_gradient(
    params: Params,
    teacher_params: Params,
    batch: Batch,
    key: jax.Array,
    student: LanguageModel,
    teacher: LanguageModel | None,
    config: KIDConfig,
    whole_student: Callable[[Params], Params] = lambda params: params,
) -> tuple[jax.Array, Terms, Params]:
    """Loss, terms and gradient of a batch, in `config.micro_batches` parts.

    Args:
        params: that are trained.
        teacher_params: frozen.
        batch: prompts and responses.
        key: typed random key, of which every row gets its own, whatever part it is in.
        student, teacher: models of one vocabulary.
        config: static.
        whole_student: makes the student's parameters of those that are trained.

    Returns:
        loss [] float32, its terms, and the gradient to `params`.
    """
    whole, parts = totals(batch), config.micro_batches
    keys = imperfect.row_keys(key, batch.prompts.shape[0])

    def part(given: tuple[Batch, jax.Array]) -> tuple[jax.Array, Terms, Params]:
        def loss(params: Params) -> tuple[jax.Array, Terms]:
            full = whole_student(params)
            return kid_loss(full, teacher_params, *given, student, teacher, config, whole)

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
    """The batch of a step.

    Args:
        key, step, examples, rows: those of `draw_rows`.

    Returns:
        The examples, [B, ...].
    """
    places = draw_rows(key, step, examples, rows)
    return jax.tree.map(lambda leaf: leaf[places], examples)


def draw_rows(
    key: jax.Array,
    step: jax.Array,
    examples: Batch,
    rows: int,
    slots: jax.Array | None = None,
) -> jax.Array:
    """The examples of a step: rows of this epoch's order, the last incomplete batch left out.

    Args:
        key: typed, the run's.
        step: [] int32.
        examples: [N, ...].
        rows: B.
        slots: [B] int32, 0 to B - 1; how it is split over devices decides how the batch is.

    Returns:
        [B] int32.

    Raises:
        ValueError: fewer examples than rows.
    """
    number = examples.prompts.shape[0]
    if number < rows:
        raise ValueError(f"rows: expected at most the {number} examples there are, got {rows}")
    steps = number // rows
    order_key = jax.random.fold_in(named(key, "epochs"), step // steps)
    order = jax.random.permutation(order_key, number)
    slots = jnp.arange(rows) if slots is None else slots
    return order[step % steps * rows + slots]


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


def _check_source(student: LanguageModel, source: SourceConfig, rows: int, steps: int) -> None:
    if (source.student or source.replay is not None) and student.generate is None:
        raise ValueError("student: expected a model that generates, for a share of its responses")
    if source.replay is None:
        return
    if steps < 1:
        raise ValueError(f"steps: expected the number of all steps with a replay, got {steps}")
    if source.replay.capacity < rows:
        raise ValueError(
            f"replay.capacity: expected at least the {rows} rows of a batch, "
            f"got {source.replay.capacity}"
        )

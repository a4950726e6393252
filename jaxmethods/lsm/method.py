"""Tuning a connector and a language model on speech that an encoder has heard once.

    method = tuner(model, optimizer, rows=16)
    state = method.init(key, Data(frames, lengths, text, clips, weights, language_model))
    state, metrics = method.step(state, data)

The encoder is frozen: its frames are data, computed before (`whisper.encode`), so that a step has
neither its gradient nor its cost. A step draws rows by their weights, and its loss is the mean over
the tokens of all of them (`loss_average: tokens`); the published code took the mean of each
micro-batch's mean (`micro`). With `tokens` every step learns from that many, so that students
whose answers have different lengths can be compared. With `together` rows share one, without their
padding (`model.pack`). What trains is a setting: all weights, low-rank additions (LoRA) or the
connector.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.lsm.config import TuneConfig
from jaxmethods.lsm.connector import connect, init_connector
from jaxmethods.lsm.model import (
    IGNORED,
    Model,
    Text,
    assemble,
    pack,
    packed_losses,
    response_losses,
)
from jaxmethods.method import Method, Metrics, Objective, gradient_step
from jaxmethods.models.decoder import lora
from jaxmethods.models.decoder.layer import Params
from jaxmethods.numerics.keys import named


class Data(NamedTuple):
    """What a tuner is fed."""

    frames: jax.Array
    """[C, T, D] of the encoder, for every clip."""
    lengths: jax.Array
    """[C] int32: frames of each clip."""
    text: Text
    """[R, ...]: what is asked and answered, row by row."""
    clips: jax.Array
    """[R] int32: the clip that a row is about."""
    weights: jax.Array
    """[R] float32, at least 0: how often a row is drawn, relative to others."""
    language_model: Params
    """Where the language model begins."""
    key: jax.Array | None = None
    """Where the state's key begins in place of the run's: two tuners with one key begin with equal
    weights and draw equal places."""


class TuneState(NamedTuple):
    """A model under way."""

    key: jax.Array
    trained: Params
    """`connector`, and `language_model` or `adapters` where they train."""
    optimizer: optax.OptState
    tokens: jax.Array
    """[] float32: tokens learned from so far."""


def tuner(
    model: Model, optimizer: optax.GradientTransformation, config: TuneConfig, inputs: int
) -> Method:
    """Makes the training of a speech-text model.

    Args:
        model: sizes of connector and language model.
        optimizer: any optax transformation.
        config: rows of a step and how many at once, what trains, which mean.
        inputs: the encoder's width.

    Returns:
        `init(key, data)` and `step(state, data)` on a `TuneState`. The metrics are `loss` and
        `tokens`, those that were learned from, and of packed rows `lost`.
    """
    parts = config.micro_batches
    at_full_strength = config.model_copy(update={"lora_scale": 1.0})

    def init(key: jax.Array, data: Data) -> TuneState:
        key = key if data.key is None else data.key
        trained = {
            "connector": init_connector(
                named(key, "connector"), model.connector, inputs, model.language_model.width
            )
        }
        if config.trains == "all":
            trained["language_model"] = data.language_model
        if config.trains == "lora":
            trained["adapters"] = lora.init(
                named(key, "adapters"), model.language_model, config.lora_rank, config.lora_targets
            )
        return TuneState(key, trained, optimizer.init(trained), jnp.float32(0))

    def labels_of(data: Data, rows: jax.Array) -> jax.Array:
        found = data.text.labels[rows]  # [..., B, R]
        return found if config.tokens is None else first_labels(found, config.tokens)

    def losses(
        trained: Params, data: Data, rows: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Nats of all labels of some rows, and tokens that there was no room for."""
        clips = data.clips[rows]
        text = jax.tree.map(lambda leaf: leaf[rows], data.text)._replace(labels=labels)
        frames = data.frames[clips].astype(jnp.float32)  # kept in half precision
        speech = connect(trained["connector"], model.connector, frames, data.lengths[clips], key)
        own = language_model_of(trained, data.language_model, at_full_strength)
        assembled = assemble(own, speech, text)
        size = text.suffix.shape[1]
        if config.room is None:
            nats, _ = response_losses(
                own, model.language_model, assembled, size, remat=config.remat
            )
            return jnp.sum(nats), jnp.int32(0)
        packed = pack(assembled, config.together, config.room)
        size = min(config.together * size, config.room)
        nats, _ = packed_losses(own, model.language_model, packed, size, remat=config.remat)
        return jnp.sum(nats), packed.lost

    def token_weights(labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What a token of each micro-batch counts, [parts], and how many there are."""
        counts = jnp.sum(labels >= 0, axis=(1, 2))
        if config.loss_average == "tokens":
            return jnp.full(parts, 1.0) / jnp.maximum(jnp.sum(counts), 1), counts
        return 1.0 / (parts * jnp.maximum(counts, 1)), counts

    def step(state: TuneState, data: Data) -> tuple[TuneState, Metrics]:
        key, draw, dropout = jax.random.split(state.key, 3)
        rows = draw_rows(draw, data.weights, config.batch).reshape(parts, -1)
        labels = labels_of(data, rows)  # [parts, B / parts, R]
        weights, counts = token_weights(labels)

        def part(
            gradient: Any, given: tuple[jax.Array, jax.Array, jax.Array, jax.Array]
        ) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            own, own_labels, weight, own_key = given

            def weighted(trained: Params) -> tuple[jax.Array, jax.Array]:
                nats, lost = losses(trained, data, own, own_labels, own_key)
                return weight * nats, lost

            found, change = jax.value_and_grad(weighted, has_aux=True)(state.trained)
            return jax.tree.map(jnp.add, gradient, change), found

        keys = jax.random.split(dropout, parts)
        nothing = jax.tree.map(jnp.zeros_like, state.trained)
        gradient, (values, lost) = jax.lax.scan(part, nothing, (rows, labels, weights, keys))
        trained, moments = gradient_step(optimizer, gradient, state.optimizer, state.trained)
        tokens = jnp.sum(counts).astype(jnp.float32)
        after = TuneState(key, trained, moments, state.tokens + tokens)
        metrics = {"loss": jnp.sum(values), "tokens": tokens}
        return after, metrics | ({} if config.room is None else {"lost": jnp.sum(lost)})

    def objective(state: TuneState, data: Data) -> Objective:
        def loss(trained: Params, key: jax.Array) -> jax.Array:
            draw, dropout = jax.random.split(key)
            rows = draw_rows(draw, data.weights, config.batch).reshape(parts, -1)
            labels = labels_of(data, rows)
            weights, _ = token_weights(labels)
            keys = jax.random.split(dropout, parts)
            nats, _ = jax.vmap(losses, (None, None, 0, 0, 0))(trained, data, rows, labels, keys)
            return jnp.sum(weights * nats)

        return Objective(state.trained, loss)

    return Method(init, step, objective)


def language_model_of(trained: Params, base: Params, config: TuneConfig) -> Params:
    """The language model of a state.

    Args:
        trained: what trains.
        base: where it began.
        config: says what trains, and how strong additions are: less than 1 of `lora_scale` at test
            time undoes a part of the tuning (`lora.weakened`).

    Returns:
        Its parameters.
    """
    if config.trains == "all":
        return trained["language_model"]
    if config.trains == "connector":
        return base
    scale = config.lora_scale * config.lora_alpha / config.lora_rank
    return lora.attach(base, trained["adapters"], scale)


def first_labels(labels: jax.Array, count: int) -> jax.Array:
    """Labels [..., R] of which the first `count` in order count; those behind are `IGNORED`."""
    learned = (labels >= 0).ravel()
    before = jnp.cumsum(learned).reshape(labels.shape)
    return jnp.where(before <= count, labels, IGNORED)


def draw_rows(key: jax.Array, weights: jax.Array, count: int) -> jax.Array:
    """Places of rows, with replacement.

    Args:
        key: typed random key.
        weights: [R], at least 0 and not all 0.
        count: how many; static.

    Returns:
        [count] int32; a row of weight 0 is never drawn.
    """
    before = jnp.cumsum(weights)
    drawn = jax.random.uniform(key, (count,)) * before[-1]
    places = jnp.searchsorted(before, drawn, side="right")
    # Rounding may put the largest draw behind the last row that counts.
    last = jnp.max(jnp.where(weights > 0, jnp.arange(len(weights)), 0))
    return jnp.minimum(places, last).astype(jnp.int32)

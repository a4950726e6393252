"""The small encoder: it learns sounds, is frozen, and hears every clip once.

The synthesizer knows which sound it makes when, so that the encoder learns a class for each of its
positions; the linear map to classes is dropped afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmethods.layout import Layout
from jaxmethods.lsm.config import ListenerConfig, SpeechTextRun
from jaxmethods.lsm.recipes.world import (
    SPEECH,
    SPLITS,
    TRAIN,
    Spoken,
    encoder_config,
    for_a_small_model,
)
from jaxmethods.lsm.synthesizer import SYMBOLS
from jaxmethods.method import Method, Metrics, Objective, gradient_step, made_once
from jaxmethods.models.decoder.layer import Params
from jaxmethods.models.whisper.config import EncoderConfig
from jaxmethods.models.whisper.encoder import encode, init_encoder
from jaxmethods.numerics.predictions import right
from jaxmethods.stages import Arrays, Compute, Part, Place, Results, Train

LISTENER, HEARD = "listener", "heard"
SHIFT = 8
"""Positions by which a clip begins later in training, at most."""
MASKED = 6
"""Mel bins that are hidden in training, at most."""
AT_ONCE = 48
"""Clips that are heard at once."""


class ListenerState(NamedTuple):
    """An encoder under way."""

    key: jax.Array
    params: Params
    """`encoder`, and the map to sounds, `head`."""
    optimizer: optax.OptState


class Clips(NamedTuple):
    """What it learns from."""

    features: jax.Array
    """[N, M, F]."""
    sounds: jax.Array
    """[N, T] int32: the sound of each position."""


def listener_stage(run: SpeechTextRun) -> Train:
    """The encoder learns the sounds of the training clips."""
    config = encoder_config(run.speech, run.listener)

    def data(results: Results) -> Clips:
        own: Spoken = results[SPEECH][TRAIN]
        return Clips(own.features, own.sounds)  # type: ignore[arg-type]

    return Train(
        LISTENER,
        made_once(listener, config, run.listener),
        run.listener.steps,
        data,
        result=lambda state, batch: state.params["encoder"],
    )


def listener(config: EncoderConfig, settings: ListenerConfig) -> Method:
    """Training of an encoder to tell sounds apart.

    Args:
        config: the encoder's sizes.
        settings: batch and learning rate.

    Returns:
        A method on `ListenerState` and `Clips`; the metrics are `loss`, nats
        a position, and `accuracy`, the share of positions that are right.
    """
    schedule = optax.cosine_onecycle_schedule(settings.steps, settings.learning_rate)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))

    def init(key: jax.Array, batch: Clips) -> ListenerState:
        del batch
        key, own, head = jax.random.split(key, 3)
        kernel = config.width**-0.5 * jax.random.normal(head, (config.width, len(SYMBOLS)))
        encoder = init_encoder(own, config)
        blocks = for_a_small_model(encoder["layers"], config.width)
        params = {"encoder": encoder | {"layers": blocks}, "head": kernel}
        return ListenerState(key, params, optimizer.init(params))

    def measured(params: Params, batch: Clips, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        draw, change = jax.random.split(key)
        rows = jax.random.randint(draw, (settings.batch,), 0, len(batch.features))
        features, sounds = varied(
            change, batch.features[rows].astype(jnp.float32), batch.sounds[rows]
        )
        logits = encode(params["encoder"], config, features).last @ params["head"]
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, sounds)
        return jnp.mean(nats), jnp.mean(right(logits, sounds))

    def objective(state: ListenerState, batch: Clips) -> Objective:
        return Objective(state.params, lambda params, key: measured(params, batch, key)[0])

    def step(state: ListenerState, batch: Clips) -> tuple[ListenerState, Metrics]:
        key, own = jax.random.split(state.key)
        found, gradient = jax.value_and_grad(measured, has_aux=True)(state.params, batch, own)
        params, moments = gradient_step(optimizer, gradient, state.optimizer, state.params)
        metrics = {"loss": found[0], "accuracy": found[1]}
        return ListenerState(key, params, moments), metrics

    return Method(init, step, objective)


def varied(key: jax.Array, features: jax.Array, sounds: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Clips [B, M, F] and their sounds [B, T], a little later, with some bins hidden."""
    shift_key, start_key, width_key = jax.random.split(key, 3)
    batch, bins, _ = features.shape
    shifts = jax.random.randint(shift_key, (batch,), 0, SHIFT)
    # What is rolled to the beginning is padding, which is silence like the beginning.
    features = jax.vmap(lambda clip, by: jnp.roll(clip, 2 * by, axis=1))(features, shifts)
    sounds = jax.vmap(jnp.roll)(sounds, shifts)
    start = jax.random.randint(start_key, (batch, 1), 0, bins)
    width = jax.random.randint(width_key, (batch, 1), 0, MASKED)
    place = jnp.arange(bins)
    hidden = (place >= start) & (place < start + width)  # [B, M]
    means = jnp.mean(features, axis=(1, 2), keepdims=True)
    return jnp.where(hidden[..., None], means, features), sounds


def heard_stage(run: SpeechTextRun) -> Compute:
    """Every clip, heard once by every seed's encoder: [S, N, T, C] float16 a split."""
    config = encoder_config(run.speech, run.listener)
    program = jax.jit(
        jax.vmap(lambda params, x: encode(params, config, x).last, (0, None)),
    )

    def hear(results: Results, place: Place, split: str) -> Arrays:
        features = results[SPEECH][split].features
        found = []
        for start in range(0, len(features), AT_ONCE):
            own = features[start : start + AT_ONCE]
            full = np.pad(own, ((0, AT_ONCE - len(own)), (0, 0), (0, 0))).astype(np.float32)
            states = place(program(results[LISTENER], full), Layout())
            found.append(np.asarray(jax.device_get(states))[:, : len(own)].astype(np.float16))
        return {"frames": np.concatenate(found, axis=1)}

    def parts(results: Results, place: Place) -> list[Part]:
        return [Part(split, partial(hear, results, place, split)) for split in SPLITS]

    def finish(found: Sequence[Arrays]) -> dict[str, Any]:
        return {split: part["frames"] for split, part in zip(SPLITS, found, strict=True)}

    return Compute(HEARD, parts, finish)

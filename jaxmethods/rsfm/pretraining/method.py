r"""Pretraining as a `Method`: AdamW on random crops of random images.

    method = pretrainer(config, training)                     # any config of `learners`
    state = method.init(key, Pixels(images, mean, std))
    state, metrics = method.step(state, batch)  # loss, rate, gradient_norm

One step for masked autoencoders, contrasts of sensors and of captions: what is minimized follows
from the config's type (`learners`), what is seen from the batch (`views`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.method import Method, Metrics, Objective, gradient_step
from jaxmethods.rsfm.config import PretrainConfig
from jaxmethods.rsfm.pretraining.learners import PretrainedConfig, learner_of
from jaxmethods.rsfm.pretraining.views import Pixels, draw_views, whole_views

STACKS = ("blocks", "layers")
"""Below these names, a parameter has a leading axis of layers."""


class State(NamedTuple):
    """A pretraining under way."""

    key: jax.Array
    step: jax.Array
    """[] int32"""
    params: Any
    """{"encoder", "decoder"} of an autoencoder, see `learners`; float32."""
    optimizer: optax.OptState


def pretrainer(config: PretrainedConfig, training: PretrainConfig) -> Method:
    """Makes the pretraining of an encoder.

    Args:
        config: what is trained, and by which objective.
        training: steps, batch, rates, crops and the type of the computation.

    Returns:
        `init(key, Pixels)` and `step(state, Pixels)` on a `State`; metrics are `loss`, `rate`
        and `gradient_norm`.
    """
    optimizer = make_optimizer(training)
    learner = learner_of(config, training)

    def init(key: jax.Array, batch: Pixels) -> State:
        del batch
        params_key, own = jax.random.split(key)
        return begin(own, learner.init(params_key), training)

    def objective(state: State, batch: Pixels) -> Objective:
        def loss(params: Any, key: jax.Array) -> jax.Array:
            return learner.loss(params, draw_views(key, batch, training), key)

        return Objective(state.params, loss)

    def step(state: State, batch: Pixels) -> tuple[State, Metrics]:
        params, loss = objective(state, batch)
        now = jax.random.fold_in(state.key, state.step)
        value, gradient = jax.value_and_grad(loss)(params, now)
        params, moments = gradient_step(optimizer, gradient, state.optimizer, state.params)
        metrics = {
            "loss": value,
            "rate": rate_at(training)(state.step),
            "gradient_norm": optax.tree.norm(gradient),
        }
        return State(state.key, state.step + 1, params, moments), metrics

    return Method(init, step, objective)


def begin(key: jax.Array, params: Any, training: PretrainConfig) -> State:
    """The state in which pretraining goes on from given parameters: a released model's."""
    moments = make_optimizer(training).init(params)
    return State(key, jnp.zeros((), jnp.int32), params, moments)


def held_out_loss(
    params: Any,
    config: PretrainedConfig,
    training: PretrainConfig,
    batch: Pixels,
    key: jax.Array,
) -> jax.Array:
    """The loss of images as they are, without crops; all of them at once.

    Args:
        params: float32.
        config: static.
        training: static.
        batch: N images.
        key: [] typed random key of the masks.

    Returns:
        [] float32.
    """
    return learner_of(config, training).loss(params, whole_views(batch), key)


def rate_at(training: PretrainConfig) -> optax.Schedule:
    """The learning rate of every step: it grows with the batch, warms up and falls as a cosine."""
    own = training.optimizer
    largest = own.learning_rate * training.batch / 256
    return optax.warmup_cosine_decay_schedule(
        0.0 if own.warmup else largest,
        largest,
        max(int(own.warmup * training.steps), 1),
        max(training.steps, 2),
        own.min_learning_rate,
    )


def make_optimizer(training: PretrainConfig) -> optax.GradientTransformation:
    """AdamW; biases, norms and single tokens have no decay."""
    own = training.optimizer
    return optax.adamw(
        rate_at(training), b1=0.9, b2=own.beta_2, weight_decay=own.weight_decay, mask=decayed
    )


def decayed(params: Any) -> Any:
    """Which leaves have weight decay: matrices; those of stacked blocks have an axis more."""

    def own(path: Any, leaf: jax.Array) -> bool:
        stacked = any(getattr(key, "key", None) in STACKS for key in path)
        return leaf.ndim - stacked > 1

    return jax.tree_util.tree_map_with_path(own, params)

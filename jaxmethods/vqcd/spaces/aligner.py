"""Training of alignment modules as a method; several tasks' modules are one vmapped program.

    method = aligner(config)                                   # one module
    method = parallel(aligner(config))                         # a leading axis of modules
    state = method.init(key, rows)
    state, metrics = method.step(state, rows)

Randomness is folded from the module's number and the step, so that what a module becomes depends
neither on how many are trained beside it nor on how far its rows are padded.

Hu et al., VQ-CD, arXiv 2410.15698, section 3.1 and the table of hyperparameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmethods.method import Method, Metrics, Objective, gradient_step
from jaxmethods.vqcd.config import AlignmentConfig
from jaxmethods.vqcd.spaces import alignment
from jaxmethods.vqcd.spaces.codebook import (
    Averages,
    clip,
    code_use,
    kmeans_start,
    restart,
    update_averages,
)
from jaxmethods.vqcd.types import Params


class AlignmentRows(NamedTuple):
    """What a module is trained on."""

    rows: jax.Array
    """[N, D] float32, normalized, with zeros behind the real columns and rows."""
    count: jax.Array
    """[] int32 real rows."""
    size: jax.Array
    """[] int32 real columns."""
    module: jax.Array
    """[] int32 the module's number, which its randomness is folded from."""


class State(NamedTuple):
    """Training of a module under way."""

    params: Params
    optimizer: Any
    averages: Averages | None
    """What the codebook moves by; None where gradients move it or there is none."""
    idle: jax.Array | None
    """[N] int32 steps since each code was used; None where codes are not restarted."""
    key: jax.Array
    step: jax.Array


def alignment_rows(rows: Sequence[np.ndarray], first_module: int = 0) -> AlignmentRows:
    """Stacks several tasks' rows for `parallel` training; on the host.

    Args:
        rows: [N_i, D_i] normalized rows of each task.
        first_module: the first module's number; others follow.

    Returns:
        Every leaf with a leading axis of modules, rows padded with zeros to the longest and widest.
    """
    longest = max(len(x) for x in rows)
    widest = max(x.shape[1] for x in rows)
    padded = [np.pad(x, ((0, longest - len(x)), (0, widest - x.shape[1]))) for x in rows]
    return AlignmentRows(
        jnp.asarray(np.stack(padded), jnp.float32),
        jnp.asarray([len(x) for x in rows], jnp.int32),
        jnp.asarray([x.shape[1] for x in rows], jnp.int32),
        jnp.arange(first_module, first_module + len(rows), dtype=jnp.int32),
    )


def parallel(method: Method) -> Method:
    """Makes one method of many that run side by side.

    Args:
        method: one whose randomness is folded from its batch, like `aligner`'s.

    Returns:
        The same method over a leading axis of state and batch; metrics are means over it.
    """

    def init(key: jax.Array, batch: Any) -> Any:
        return jax.vmap(method.init, (None, 0))(key, batch)

    def step(state: Any, batch: Any) -> tuple[Any, Metrics]:
        state, metrics = jax.vmap(method.step)(state, batch)
        return state, {name: value.mean() for name, value in metrics.items()}

    def objective(state: Any, batch: Any) -> Objective:
        """The mean over the axis."""
        assert method.objective is not None
        own = method.objective
        params = jax.vmap(lambda state, batch: own(state, batch).params)(state, batch)

        def loss(params: Any, key: jax.Array) -> jax.Array:
            one = jax.vmap(lambda state, batch, params: own(state, batch).loss(params, key))
            return one(state, batch, params).mean()

        return Objective(params, loss)

    return Method(init, step, None if method.objective is None else objective)


def trimmed(params: Params, config: AlignmentConfig, size: int) -> Params:
    """Takes the padding off a module.

    Args:
        params: of one module.
        config: static.
        size: columns of its rows; static.

    Returns:
        The same module for rows of this size alone.
    """
    if not config.trained:
        return params
    first, last = "dense0", f"dense{len(config.decoder)}"
    encoder, decoder = dict(params["encoder"]), dict(params["decoder"])
    encoder[first] = encoder[first] | {"weight": encoder[first]["weight"][:size]}
    decoder[last] = {
        "weight": decoder[last]["weight"][:, :size],
        "bias": decoder[last]["bias"][:size],
    }
    return params | {"encoder": encoder, "decoder": decoder}


def learning_rate(config: AlignmentConfig) -> optax.Schedule:
    """From `lr` to `lr_end` over `steps`, along a line or half a cosine."""
    if config.lr_decay == "linear":
        return optax.linear_schedule(config.lr, config.lr_end, config.steps)
    return optax.cosine_decay_schedule(config.lr, config.steps, config.lr_end / config.lr)


def aligner(config: AlignmentConfig) -> Method:
    """Makes the training of one alignment module.

    Args:
        config: kind, sizes, codebook and training; static. `steps` is how many it is meant for.

    Returns:
        `init(key, rows)` and `step(state, rows)` with `AlignmentRows`. Metrics: `loss`,
        `reconstruction`, and for codes `codes_used` (a share) and `perplexity` within the batch.

    Raises:
        ValueError: a kind that has nothing to train.
    """
    if not config.trained:
        raise ValueError(f"kind: expected one that is trained, got {config.kind!r}")
    optimizer = optax.adam(learning_rate(config))

    def init(key: jax.Array, data: AlignmentRows) -> State:
        key = jax.random.fold_in(key, data.module)
        draw_key, start_key, key = jax.random.split(key, 3)
        params = alignment.init(draw_key, config, data.rows.shape[-1], data.size)
        if config.kind == "vq" and config.codebook_start == "kmeans":
            encoded = _encoded(params, config, _draw(start_key, config, data))
            codes = kmeans_start(jax.random.fold_in(start_key, 2), encoded, config.codes)
            params["codebook"] = clip(codes, config)
        averages = idle = None
        if config.kind == "vq":
            if config.update == "ema":
                averages = Averages(jnp.ones(config.codes), params["codebook"])
            if config.restart_after:
                idle = jnp.zeros(config.codes, jnp.int32)
        return State(params, optimizer.init(params), averages, idle, key, jnp.int32(0))

    def step(state: State, data: AlignmentRows) -> tuple[State, Metrics]:
        row_key, noise_key, restart_key = jax.random.split(
            jax.random.fold_in(state.key, state.step), 3
        )
        x = _draw(row_key, config, data)
        (value, forward), gradient = jax.value_and_grad(alignment.loss, has_aux=True)(
            state.params, config, x, noise_key, data.size
        )
        params, moments = gradient_step(optimizer, gradient, state.optimizer, state.params)
        averages, idle = state.averages, state.idle
        metrics = {"loss": value, "reconstruction": forward.losses.reconstruction}
        if config.kind == "vq":
            if averages is not None:
                averages, codebook = update_averages(
                    averages, forward.encoded, forward.index, config
                )
                params["codebook"] = codebook
            params["codebook"] = clip(params["codebook"], config)
            if idle is not None:
                averages, idle, params["codebook"] = _restarted(
                    restart_key, config, params["codebook"], averages, idle, forward
                )
        if config.discrete:
            codes = config.codes if config.kind == "vq" else config.levels**config.width
            use = code_use(forward.index, codes)
            metrics |= {"codes_used": use.share, "perplexity": use.perplexity}
        return State(params, moments, averages, idle, state.key, state.step + 1), metrics

    def objective(state: State, data: AlignmentRows) -> Objective:
        def loss(params: Params, key: jax.Array) -> jax.Array:
            row_key, noise_key = jax.random.split(key)
            rows = _draw(row_key, config, data)
            return alignment.loss(params, config, rows, noise_key, data.size)[0]

        return Objective(state.params, loss)

    return Method(init, step, objective)


def _draw(key: jax.Array, config: AlignmentConfig, data: AlignmentRows) -> jax.Array:
    return data.rows[jax.random.randint(key, (config.batch,), 0, data.count)]


def _encoded(params: Params, config: AlignmentConfig, x: jax.Array) -> jax.Array:
    """[B n, d] what the codebook sees of rows."""
    return alignment.encoder_output(params, config, x).reshape(-1, config.width)


def _restarted(
    key: jax.Array,
    config: AlignmentConfig,
    codebook: jax.Array,
    averages: Averages | None,
    idle: jax.Array,
    forward: alignment.Forward,
) -> tuple[Averages | None, jax.Array, jax.Array]:
    """Averages, idle counts and codebook after unused codes were moved."""
    used = jnp.zeros(config.codes, bool).at[forward.index.reshape(-1)].set(True)  # [N]
    idle = jnp.where(used, 0, idle + 1)
    z = forward.encoded.reshape(-1, config.width)  # [B n, d]
    codebook, moved = restart(key, codebook, idle, z, config)
    if averages is not None:
        averages = Averages(
            jnp.where(moved, 1.0, averages.count),
            jnp.where(moved[:, None], codebook, averages.total),
        )
    return averages, jnp.where(moved, 0, idle), codebook

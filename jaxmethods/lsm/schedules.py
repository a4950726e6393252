"""Learning rates of fine-tuning: a warm-up, then linear to zero.

DeepSpeed's logarithmic warm-up, which the published training used, rises to nearly the peak at
once:

    lr(t) = peak ln(t + 1) / ln(W) for t < W,  then peak max(0, (T - t) / (T - W))

so lr(0) = 0 and lr(W - 1) = peak. The linear one is peak t / W.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

Warmup = Literal["log", "linear"]


def warmup_then_linear(
    peak: float, warmup: int, total: int, kind: Warmup = "log"
) -> Callable[[Any], jax.Array]:
    """A schedule as optax takes it.

    Args:
        peak: the largest learning rate.
        warmup: W, steps of the warm-up; 0: none. 1 has no logarithm: the peak from the start.
        total: T, where it reaches 0.
        kind: "log" or "linear".

    Returns:
        Step -> learning rate, in float32, or float64 where steps are.

    Raises:
        ValueError: a warm-up that is longer than all steps, or an unknown kind.
    """
    if not 0 <= warmup <= total or total < 1:
        raise ValueError(f"warmup: expected 0 to the {total} steps, got {warmup}")
    if kind not in ("log", "linear"):
        raise ValueError(f"kind: expected log or linear, got {kind!r}")

    def rate(step: Any) -> jax.Array:
        step = jnp.asarray(step)
        step = step.astype(jnp.promote_types(step.dtype, jnp.float32))
        falling = jnp.clip((total - step) / max(total - warmup, 1), 0, 1)
        if kind == "linear":
            rising = step / max(warmup, 1)
        elif warmup > 1:
            rising = jnp.log(step + 1) / jnp.log(jnp.asarray(warmup, step.dtype))
        else:
            rising = jnp.ones_like(step)
        return peak * jnp.where(step < warmup, rising, falling)

    return rate

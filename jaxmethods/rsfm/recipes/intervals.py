"""Shares of images with their bootstrap intervals, as tables show them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.numerics.statistics import Interval
from jaxmethods.rsfm.config import Run
from jaxmethods.rsfm.evaluation.bootstrap import interval


def of_images(run: Run, values: np.ndarray) -> Interval:
    """The mean of values [N] of test images, with its 95 % interval."""
    return interval(
        jax.random.key(run.seed), jnp.asarray(values, jnp.float32), run.evaluation.draws
    )


def in_percent(own: Interval) -> str:
    """Mean, low and high in percent."""
    return f"{100 * own.mean:.1f} [{100 * own.low:.1f}, {100 * own.high:.1f}]"

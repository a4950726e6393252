"""How the frames of a clip are cut into windows, each of which becomes a speech token.

The published rule is k = stride = round(T s / 30) frames a window with s = 0.33333 and T the
encoder frames of the longest clip of the batch, L = floor((T - k) / k) + 1 windows. So a clip's
windows depend on the clips beside it, and T <= 45 makes k = 0. Three policies:

    reference   that rule, with k at least 1: for published weights
    per_clip    the rule with each clip's own T: the same in every batch
    fixed       one length for all clips, by default the rule's at 30 s: k = 17, 0.34 s
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

WindowPolicy: TypeAlias = Literal["reference", "per_clip", "fixed"]
SECONDS = 0.33333
CLIP_SECONDS = 30.0


class Plan(NamedTuple):
    """Windows of a clip."""

    kernel: int
    """Frames of a window."""
    windows: int


class Windows(NamedTuple):
    """Frames of all clips, cut."""

    frames: jax.Array
    """[B, L, k, C]."""
    frame_mask: jax.Array | None
    """[B, L, k] bool: which frames belong to a window; None: all."""
    mask: jax.Array
    """[B, L] bool: which windows hold a frame of the clip, not of its padding."""


def window_plan(frames: int, seconds: float = SECONDS) -> Plan:
    """The published rule, with windows of at least one frame.

    Args:
        frames: T, encoder frames.
        seconds: s.

    Returns:
        Frames of a window, and how many windows there are; frames behind the last are dropped.
    """
    kernel = max(1, round(frames * seconds / CLIP_SECONDS))  # half to even, as in Python
    return Plan(kernel, (frames - kernel) // kernel + 1 if frames >= kernel else 0)


def cut_windows(
    encoded: jax.Array,
    lengths: jax.Array,
    policy: WindowPolicy,
    *,
    seconds: float = SECONDS,
    window: int | None = None,
) -> Windows:
    """Cuts encoder frames into windows.

    Args:
        encoded: [B, T, C]; for `reference`, T is that of the longest clip (static: a bucket).
        lengths: [B] int, frames of each clip, at most T.
        policy: see the module; static.
        seconds: s of the rule; static.
        window: frames of a window of `fixed`; None: those of the rule at 30 s; static.

    Returns:
        The frames and what of them counts. Frames of `fixed` behind a clip's last are masked.

    Raises:
        ValueError: an unknown policy, or no frames.
    """
    batch, frames, width = encoded.shape
    if frames < 1:
        raise ValueError("encoded: expected at least one frame, got none")
    if policy == "reference":
        kernel, number = window_plan(frames, seconds)
        cut = encoded[:, : number * kernel].reshape(batch, number, kernel, width)
        return Windows(cut, None, jnp.arange(number) * kernel < lengths[:, None])
    if policy == "fixed":
        kernel = window or window_plan(1500, seconds).kernel
        number = -(-frames // kernel)
        padded = jnp.pad(encoded, ((0, 0), (0, number * kernel - frames), (0, 0)))
        there = jnp.arange(number * kernel) < lengths[:, None]  # [B, L k]
        there = there.reshape(batch, number, kernel)
        return Windows(padded.reshape(batch, number, kernel, width), there, there[:, :, 0])
    if policy != "per_clip":
        raise ValueError(f"policy: expected reference, per_clip or fixed, got {policy!r}")
    kernels, number = _tables(frames, seconds)
    own = jnp.asarray(kernels)[lengths]  # [B]
    within = jnp.arange(kernels.max())  # [k]
    starts = jnp.arange(number) * own[:, None]  # [B, L]
    places = jnp.minimum(starts[..., None] + within, frames - 1)  # [B, L, k]
    cut = jax.vmap(lambda row, where: row[where])(encoded, places)  # [B, L, k, C]
    there = jnp.broadcast_to(within < own[:, None, None], places.shape)
    # Only windows that are whole, as in the rule.
    return Windows(cut, there, starts + own[:, None] <= lengths[:, None])


@lru_cache(maxsize=64)
def _tables(frames: int, seconds: float) -> tuple[np.ndarray, int]:
    """Frames of a window for each length 0 .. T, and the most windows of any."""
    plans = [window_plan(length, seconds) for length in range(frames + 1)]
    return np.asarray([plan.kernel for plan in plans], np.int32), max(p.windows for p in plans)

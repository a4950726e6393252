r"""A feature pyramid that paints classes, beside the linear head of `segmenter`.

    c_k = tokens of block l_k, resized by 4, 2, 1, 1/2               lateral 1 x 1 maps
    c_4 <- c_4 + pyramid pooling over 1, 2, 3, 6 bins                  (PSPNet)
    p_k = c_k + up(p_{k+1}),    logits = up(W [smooth(p_1), up smooth(p_2), ...])

Lin et al. 2017 (arXiv 1612.03144) with Zhao et al.'s pooling (arXiv 1612.01105) is UPerNet's
decoder (arXiv 1807.10221); a plain transformer has one scale, so its blocks are resized to four, as
BEiT and MAE segment with it. Here with 64 channels, not 256, and without batch norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxmethods.models.geovit import EncoderConfig
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.linear_probe import Scaling, standardizer
from jaxmethods.numerics.predictions import labeled
from jaxmethods.rsfm.evaluation.measures.segmentation import IGNORED

SCALES = (4.0, 2.0, 1.0, 0.5)
BINS = (1, 2, 3, 6)


class Pyramid(nn.Module):
    """The decoder: four levels of tokens [B, 4, L, D] to logits [B, H, W, C]."""

    classes: int
    size: int
    """Pixels along a side of an image."""
    width: int = 64

    @nn.compact
    def __call__(self, levels: jax.Array) -> jax.Array:
        """Logits of pixels.

        Args:
            levels: [B, 4, L, D], L a square.

        Returns:
            [B, H, W, C].
        """
        grid = round(levels.shape[2] ** 0.5)
        maps = []
        for place, scale in enumerate(SCALES):
            side = min(max(int(grid * scale), 1), self.size)  # no finer than pixels
            own = levels[:, place].reshape(len(levels), grid, grid, -1)  # [B, g, g, D]
            maps.append(_resized(nn.Dense(self.width, name=f"lateral_{place}")(own), side))
        maps[-1] = self._pooled(maps[-1])
        for place in range(len(maps) - 2, -1, -1):
            maps[place] = maps[place] + _resized(maps[place + 1], maps[place].shape[1])
        finest = maps[0].shape[1]
        smooth = [
            _resized(nn.relu(nn.Conv(self.width, (3, 3), name=f"smooth_{place}")(own)), finest)
            for place, own in enumerate(maps)
        ]
        fused = nn.relu(nn.Dense(self.width, name="fuse")(jnp.concatenate(smooth, axis=-1)))
        said = nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name="classify")(fused)
        return _resized(said, self.size)

    def _pooled(self, own: jax.Array) -> jax.Array:
        """Pyramid pooling of [B, g, g, W]; bins that the map doesn't have are left out."""
        side, parts = own.shape[1], [own]
        for bins in BINS:
            if bins <= side:
                means = averaged(own, bins)
                means = nn.relu(nn.Dense(self.width // 4, name=f"bins_{bins}")(means))
                parts.append(_resized(means, side))
        return nn.Dense(self.width, name="bottleneck")(jnp.concatenate(parts, axis=-1))


class PyramidSegmenter(NamedTuple):
    """A pyramid that was learned."""

    scaling: Scaling
    """Mean and deviation of the four levels' tokens, [4, 1, D]."""
    params: Any
    losses: jax.Array
    """[steps]"""


def default_blocks(config: EncoderConfig) -> tuple[int, ...]:
    """The blocks of the four levels: a quarter, a half, three quarters and the whole of the depth,
    as places in `Encoded.hidden`."""
    return tuple(max(round(config.depth * share / 4), 1) for share in (1, 2, 3, 4))


def levels_of(hidden: jax.Array, config: EncoderConfig, blocks: Sequence[int]) -> jax.Array:
    """Patch tokens of some blocks.

    Args:
        hidden: [N + 1, B, 1 + R + L, D], the tap of `encode`.
        config: of the encoder.
        blocks: four of 1 to N.

    Returns:
        [B, 4, L, D].
    """
    tokens = hidden[jnp.asarray(blocks)][:, :, 1 + config.registers :]
    return jnp.moveaxis(tokens, 0, 1)


@compiled("classes", "size", "width", "steps", "batch")
def fit_pyramid(
    key: jax.Array,
    levels: jax.Array,
    labels: jax.Array,
    *,
    classes: int,
    size: int,
    width: int = 64,
    steps: int = 200,
    batch: int = 16,
    rate: float = 2e-3,
    decay: float = 1e-2,
) -> PyramidSegmenter:
    """Learns the head by AdamW on random images; the encoder's tokens are frozen.

    Args:
        key: [] typed random key.
        levels: [N, 4, L, D] of `levels_of`.
        labels: [N, H, W] integers; 255 and what is no class does not count.
        classes: C; static.
        size: H = W; static.
        width: channels of the pyramid; static.
        steps: static.
        batch: images of a step, at most N; static.
        rate: of AdamW, falling as a cosine.
        decay: of the weights.

    Returns:
        The head.
    """
    scaling = _level_scaling(levels)
    model = Pyramid(classes, size, width)
    init_key, row_key = jax.random.split(key)
    params = model.init(init_key, scaling(levels[:1]))
    optimizer = optax.adamw(optax.cosine_decay_schedule(rate, max(steps, 1)), weight_decay=decay)
    number = min(batch, len(levels))

    def step(carry: Any, key: jax.Array) -> Any:
        params, moments = carry
        rows = jax.random.permutation(key, len(levels))[:number]

        def loss(params: Any) -> jax.Array:
            said: Any = model.apply(params, scaling(levels[rows]))
            return pixel_entropy(said, labels[rows], classes)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    carry = (params, optimizer.init(params))
    (params, _), losses = jax.lax.scan(step, carry, jax.random.split(row_key, steps))
    return PyramidSegmenter(scaling, params, losses)


def segment(
    head: PyramidSegmenter, levels: jax.Array, classes: int, size: int, width: int = 64
) -> jax.Array:
    """Logits of pixels.

    Args:
        head: that was learned.
        levels: [N, 4, L, D].
        classes: C; static.
        size: H = W; static.
        width: channels of the pyramid; static.

    Returns:
        [N, H, W, C].
    """
    said: Any = Pyramid(classes, size, width).apply(head.params, head.scaling(levels))
    return said


def pixel_entropy(logits: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """The mean cross entropy over pixels that have a class.

    Args:
        logits: [..., C].
        labels: [...] integers; 255 and what is no class does not count.
        classes: C; static.

    Returns:
        [] ; 0 where no pixel counts.
    """
    counts = labeled(labels, classes) & (labels != IGNORED)
    target = jnp.where(counts, labels, 0).astype(jnp.int32)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    return jnp.sum(entropy * counts) / jnp.maximum(jnp.sum(counts), 1)


def _level_scaling(levels: jax.Array) -> Scaling:
    """Each level by its own mean and deviation."""
    flat = jnp.moveaxis(levels, 1, 0).reshape(levels.shape[1], -1, levels.shape[-1])  # [4, N L, D]
    own = jax.vmap(standardizer)(flat)
    return Scaling(own.mean[:, None], own.scale[:, None])


def _resized(maps: jax.Array, side: int) -> jax.Array:
    """[B, s, s, W] bilinearly, with smoothing where it becomes smaller."""
    shape = (len(maps), side, side, maps.shape[-1])
    return maps if maps.shape == shape else jax.image.resize(maps, shape, "bilinear")


def averaged(maps: jax.Array, bins: int) -> jax.Array:
    """Means over bins x bins areas, whose ends overlap where the side is no multiple (PyTorch's
    adaptive pooling)."""
    side = maps.shape[1]
    places = jnp.arange(side)
    rows = []
    for own in range(bins):
        first, last = own * side // bins, -(-(own + 1) * side // bins)
        rows.append(((places >= first) & (places < last)) / (last - first))
    share = jnp.stack(rows).astype(maps.dtype)  # [bins, s]
    return jnp.einsum("ph,bhwc,qw->bpqc", share, maps, share)

r"""SatMAE's targets and loss for groups of bands.

    L = sum_{g, i} m_gi mean_{c in g} mean_k (x^_cik - t_cik)^2 / sum_{g, i} m_gi

Cong et al. 2022, arXiv 2207.08051, section 3.2. Every group has its own embedding and its own head.
The published code paints bands in the order of the groups and compares them with bands in the order
of the file: with groups (0, 1, 2, 6), (3, 4, 5, 7), ... band 3 is painted by the head of the first
group and weighted by the mask of the second. `pairing: published` keeps that, for its numbers;
`by_group`, the default, compares every band with itself.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.models.clip.vit import linear
from jaxmethods.rsfm.config import MAEConfig
from jaxmethods.rsfm.pretraining.targets import masked_mean, patch_targets


def paint(params: Any, config: MAEConfig, tokens: jax.Array) -> jax.Array:
    """Pixels of all bands, in the order of the groups.

    Args:
        params: {"0": {"weight", "bias"}, ...}, a head for each group.
        config: static.
        tokens: [B, G L, D'] of the decoder, all patches of group 0 first.

    Returns:
        [B, C, L, p p].
    """
    groups, size = config.encoder.groups, config.encoder.patch**2
    split = tokens.reshape(len(tokens), len(groups), -1, tokens.shape[-1])  # [B, G, L, D']
    painted = []
    for place, group in enumerate(groups):
        pixels = linear(params[str(place)], split[:, place])  # [B, L, c p p]
        pixels = pixels.reshape(*pixels.shape[:2], len(group), size)
        painted.append(pixels.transpose(0, 2, 1, 3))  # [B, c, L, p p]
    return jnp.concatenate(painted, axis=1)


def loss(
    config: MAEConfig,
    images: jax.Array,
    pred: jax.Array,
    hidden: jax.Array,
    valid: jax.Array | None = None,
) -> jax.Array:
    """The loss over hidden tokens of all groups.

    Args:
        config: static.
        images: [B, H, W, C].
        pred: [B, C', L, p p] in the order of the groups, which may leave bands out.
        hidden: [B, G L].
        valid: [B, H, W] bool; None: all.

    Returns:
        [] float32.

    Raises:
        ValueError: the published pairing with groups that leave bands out.
    """
    own, patch = config.encoder, config.encoder.patch
    order = [band for group in own.groups for band in group]
    if config.pairing == "published":
        if len(order) < images.shape[-1]:
            raise ValueError("pairing: published needs groups of all bands")
        places = own.groups
        order = list(range(images.shape[-1]))
    else:
        ends = [sum(len(group) for group in own.groups[: n + 1]) for n in range(len(own.groups))]
        places = [
            tuple(range(end - len(group), end)) for end, group in zip(ends, own.groups, strict=True)
        ]
    ordered = images[..., jnp.asarray(order)]
    target, weight = patch_targets(ordered, patch, config.norm_pix, valid)
    target = target.transpose(0, 3, 1, 2)  # [B, C, L, p p]
    errors = jnp.square(pred.astype(jnp.float32) - target)
    of_groups = jnp.stack([jnp.mean(errors[:, jnp.asarray(own)], axis=1) for own in places], 1)
    flat = of_groups.reshape(len(images), -1, patch * patch)  # [B, G L, p p]
    tiled = None if weight is None else jnp.tile(weight, (1, len(places), 1))
    return masked_mean(flat, hidden, tiled)

r"""Fine-tuning with few labels: a whole encoder with layer decay, or low-rank additions to it.

    full:  AdamW on everything; block l of N has the rate  rate x decay^(N + 1 - l)
    lora:  W + B A for queries, keys and values; A, B and the head alone are trained

Layer decay is BEiT's (arXiv 2106.08254, appendix H) as MAE fine-tunes with it (arXiv 2111.06377,
table 9); low-rank additions are Hu et al. 2022 (arXiv 2106.09685). The head reads the mean of the
patch tokens. Draws of the labeled images are one vmapped program; images stay where they are, and a
draw is a row of their places. Mixup, CutMix and stochastic depth are not built.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.method import gradient_step
from jaxmethods.models.geovit import Context, EncoderConfig, encode, pool
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.predictions import chosen
from jaxmethods.rsfm.config import FinetuneConfig
from jaxmethods.rsfm.pretraining.method import decayed
from jaxmethods.rsfm.pretraining.views import mirrored
from jaxmethods.rsfm.schedules import layer_decay_scales

How = Literal["full", "lora"]
ADAPTED = ("q_proj", "k_proj", "v_proj")
SMOOTHING = 0.1
"""Share of the other classes in a label."""
WARMUP = 0.1
"""Share of the steps in which the rate grows."""


class Labeled(NamedTuple):
    """Images that draws choose from."""

    images: jax.Array
    """[N, H, W, C] float32, normalized."""
    labels: jax.Array
    """[N]"""


class Tuned(NamedTuple):
    """An encoder with a head."""

    trained: Any
    """{"encoder", "head"}, or {"blocks", "head"} with low-rank additions to the blocks."""
    losses: jax.Array
    """[steps]"""


@compiled("config", "training", "how", "classes", "fresh")
def finetune_draws(
    keys: jax.Array,
    params: Any,
    rows: jax.Array,
    data: Labeled,
    test: jax.Array,
    *,
    config: EncoderConfig,
    training: FinetuneConfig,
    classes: int,
    how: How = "full",
    fresh: bool = False,
    gsd: jax.Array | None = None,
) -> jax.Array:
    """Fine-tunes once for every draw of labeled images, and names the classes of test images.

    Args:
        keys: [S] typed random keys.
        params: of the encoder; with `fresh`, one for every draw, leaves [S, ...].
        rows: [S, n] places of the labeled images in `data`.
        data: images to choose from.
        test: [T, H, W, C] float32, normalized.
        config: of the encoder; static.
        training: steps, batch, rates; static.
        classes: C; static.
        how: what is trained; static.
        fresh: the encoder was never trained: every layer has the whole rate; static.
        gsd: [] meters of a pixel of all images, where positions need them.

    Returns:
        [S, T] predicted classes; -1 where a logit is NaN.
    """
    decay = 1.0 if fresh else training.layer_decay

    def one(key: jax.Array, params: Any, rows: jax.Array) -> jax.Array:
        found = finetune(key, params, rows, data, config, training, classes, how, decay, gsd)

        def named(images: jax.Array) -> jax.Array:
            return chosen(logits(found.trained, params, config, images[None], gsd)[0])

        return jax.lax.map(named, test, batch_size=min(training.batch, len(test)))

    return jax.vmap(one, (0, 0 if fresh else None, 0))(keys, params, rows)


def finetune(
    key: jax.Array,
    params: Any,
    rows: jax.Array,
    data: Labeled,
    config: EncoderConfig,
    training: FinetuneConfig,
    classes: int,
    how: How = "full",
    decay: float = 0.75,
    gsd: jax.Array | None = None,
) -> Tuned:
    """Fine-tunes on some images by AdamW, with images mirrored and turned at random.

    Args:
        key: [] typed random key.
        params: of the encoder, float32.
        rows: [n] places of the labeled images in `data`.
        data: images to choose from.
        config: of the encoder; static.
        training: steps, batch, rates; static.
        classes: C; static.
        how: what is trained; static.
        decay: of the rate from a block to the one below; static.
        gsd: [] meters of a pixel of all images, where positions need them.

    Returns:
        What was trained.
    """
    start_key, own = jax.random.split(key)
    trained = start(start_key, params, config, classes, how, training.rank)
    scales = rate_scales(trained, config.depth, decay)
    rates = optax.warmup_cosine_decay_schedule(
        0.0,
        training.learning_rate,
        max(int(WARMUP * training.steps), 1),
        max(training.steps, 2),
    )
    optimizer = optax.chain(
        optax.adamw(rates, weight_decay=training.weight_decay, mask=decayed),
        optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, scales)),
    )
    size = min(training.batch, rows.shape[0])

    def step(carry: Any, key: jax.Array) -> Any:
        trained, moments = carry
        row_key, turn_key = jax.random.split(key)
        chosen = rows[jax.random.permutation(row_key, len(rows))[:size]]
        turn = jax.random.bernoulli(turn_key, 0.5, (3, size))
        images, labels = mirrored(data.images[chosen], turn, (-3, -2)), data.labels[chosen]

        def loss(trained: Any) -> jax.Array:
            said = logits(trained, params, config, images, gsd)
            target = optax.smooth_labels(jax.nn.one_hot(labels, classes), SMOOTHING)
            return jnp.mean(optax.softmax_cross_entropy(said, target))

        value, gradient = jax.value_and_grad(loss)(trained)
        return gradient_step(optimizer, gradient, moments, trained), value

    carry = (trained, optimizer.init(trained))
    (trained, _), losses = jax.lax.scan(step, carry, jax.random.split(own, training.steps))
    return Tuned(trained, losses)


def start(
    key: jax.Array, params: Any, config: EncoderConfig, classes: int, how: How, rank: int
) -> Any:
    """What is trained, before the first step: it says nothing yet, and changes nothing.

    Args:
        key: [] typed random key.
        params: of the encoder.
        config: of the encoder.
        classes: C.
        how: what is trained.
        rank: of low-rank additions.

    Returns:
        See `Tuned`.
    """
    width = config.width
    head = {"weight": jnp.zeros((classes, width)), "bias": jnp.zeros(classes)}
    if how == "full":
        return {"encoder": params, "head": head}
    bound = width**-0.5
    keys = jax.random.split(key, len(ADAPTED))
    shape = (config.depth, rank, width)
    blocks = {
        name: {
            "a": jax.random.uniform(own, shape, minval=-bound, maxval=bound),
            "b": jnp.zeros((config.depth, width, rank)),
        }
        for name, own in zip(ADAPTED, keys, strict=True)
    }
    return {"blocks": blocks, "head": head}


def logits(
    trained: Any,
    params: Any,
    config: EncoderConfig,
    images: jax.Array,
    gsd: jax.Array | None = None,
) -> jax.Array:
    """What an encoder with a head says.

    Args:
        trained: of `start` or `finetune`.
        params: of the encoder before; low-rank additions are added to them.
        config: of the encoder; static.
        images: [B, H, W, C] float32, normalized.
        gsd: [] meters of a pixel.

    Returns:
        [B, C].
    """
    own = trained["encoder"] if "encoder" in trained else adapted(params, trained["blocks"])
    context = Context(gsd=None if gsd is None else jnp.broadcast_to(gsd, len(images)))
    features = pool(own, config, encode(own, config, images, context), "mean")
    return features @ trained["head"]["weight"].T + trained["head"]["bias"]


def adapted(params: Any, additions: Any) -> Any:
    """The encoder with W + B A in place of W.

    Args:
        params: of the encoder.
        additions: name of a map -> {"a" [N, r, D], "b" [N, D, r]}.

    Returns:
        Parameters in the structure of `params`.
    """
    attention = dict(params["blocks"]["self_attn"])
    for name, own in additions.items():
        weight = attention[name]["weight"] + own["b"] @ own["a"]  # [N, D, D]
        attention[name] = attention[name] | {"weight": weight}
    return params | {"blocks": params["blocks"] | {"self_attn": attention}}


def rate_scales(trained: Any, depth: int, decay: float) -> Any:
    """What the rate is multiplied with: [N, 1, ...] for stacked blocks, a number elsewhere.

    The embedding, class token and positions are below all blocks, the last norm and the head above.

    Args:
        trained: of `start`.
        depth: N.
        decay: from a block to the one below.

    Returns:
        A tree in the structure of `trained`.
    """
    scales = layer_decay_scales(depth, decay)

    def own(path: Any, leaf: jax.Array) -> Any:
        names = [getattr(key, "key", None) for key in path]
        if "blocks" in names:
            return jnp.asarray(scales[1:-1].reshape(-1, *[1] * (leaf.ndim - 1)), leaf.dtype)
        return jnp.asarray(scales[-1 if {"head", "norm"} & set(names) else 0], leaf.dtype)

    return jax.tree_util.tree_map_with_path(own, trained)

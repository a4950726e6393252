r"""CLIP: a vision tower and a text tower with one space of features.

    logits_per_image = exp(s) normalize(image features) normalize(text features)^T

Radford et al. 2021, arXiv 2103.00020. Hugging Face folders of the whole model (`clip`) and of the
vision tower alone (`clip_vision_model`, with or without its projection) go in and out: parameters
keep their names,

    {"vision_model", "visual_projection", "text_model", "text_projection", "logit_scale"}

with the blocks of each tower stacked on a leading layer axis.

    folder = clip.load("clip-vit-base-patch32")
    tokenizer = clip.load_tokenizer("clip-vit-base-patch32")
    head = clip.head_from_templates(folder.params, folder.config, tokenizer, names, templates)
    features = clip.image_features(folder.params, folder.config, pixels).features
    logits = clip.classify(features, head, folder.params["logit_scale"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import PositiveInt, model_validator

from jaxmethods.config import Config
from jaxmethods.models.clip import vit
from jaxmethods.models.clip.vit import Activation, VisionConfig
from jaxmethods.models.lookup import rows

LEGACY_EOS = 2
"""An `eos_token_id` that old configs hold by mistake: the pooled token is then the largest id."""


class TextConfig(Config):
    """Sizes of a text tower; names and defaults are Hugging Face's (ViT-B/32)."""

    vocab_size: PositiveInt = 49408
    hidden_size: PositiveInt = 512
    intermediate_size: PositiveInt = 2048
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 8
    max_position_embeddings: PositiveInt = 77
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: PositiveInt = 512
    eos_token_id: int = 49407

    @model_validator(mode="after")
    def _heads_fit(self) -> TextConfig:
        vit.check_heads(self.hidden_size, self.num_attention_heads)
        return self


class CLIPConfig(Config):
    """Both towers, or the vision tower alone."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig | None = TextConfig()
    """None: a folder of the vision tower alone, without scale."""
    projection_dim: PositiveInt = 512
    projected_tower: bool = False
    """Whether a vision tower alone has its projection."""


class Text(NamedTuple):
    """A text tower's output."""

    features: jax.Array
    """[B, P]: projected, not normalized."""
    pooled: jax.Array
    """[B, D]: final norm of the end-of-text token."""
    last: jax.Array
    """[B, L, D]: final norm of all tokens."""
    encoded: vit.Encoded


def image_features(
    params: Any, config: CLIPConfig, pixels: jax.Array, **options: Any
) -> vit.Vision:
    """`vit.forward` with the model's visual projection (if it has one).

    Args:
        params: parameters, see `init`.
        config: sizes of the model.
        pixels: [B, H, W, C] float; Hugging Face's (B, C, H, W) is `pixels.transpose(0, 2, 3, 1)`.
        options: see `vit.forward`.

    Returns:
        Features [B, P] and what was tapped.
    """
    projection = params.get("visual_projection", {}).get("weight")
    return vit.forward(
        params["vision_model"], config.vision, pixels, projection=projection, **options
    )


def text_features(
    params: Any,
    config: CLIPConfig,
    ids: jax.Array,
    mask: jax.Array | None = None,
    taps: Sequence[str] = (),
) -> Text:
    """Encodes texts.

    Args:
        params: parameters, see `init`.
        config: sizes of the model.
        ids: [B, L] integer token ids, L at most `max_position_embeddings`. Ids that the vocabulary
            hasn't are an error, or NaN where values aren't known (in `jit`).
        mask: [B, L], 0 at padding; None: no padding. The pooled token never looks behind itself,
            so padding after it doesn't matter to the features.
        taps: what else is returned.

    Returns:
        Features [B, P] and what was tapped.
    """
    text = config.text
    if text is None:
        raise ValueError("config: expected a model with a text tower, this is a vision tower alone")
    if ids.shape[-1] > text.max_position_embeddings:
        raise ValueError(
            f"ids: expected at most {text.max_position_embeddings} tokens, got {ids.shape[-1]}"
        )
    tower = params["text_model"]
    length = ids.shape[-1]
    x = rows(tower["embeddings"]["token_embedding"]["weight"], ids, "ids")
    x = x + tower["embeddings"]["position_embedding"]["weight"][:length]
    sees = jnp.tril(jnp.ones((length, length), bool))[None, None]
    if mask is not None:
        sees = sees & (mask[:, None, None, :] != 0)
    encoded = vit.encode(tower["encoder"]["layers"], text, x, mask=sees, taps=taps)
    last = vit.layer_norm(tower["final_layer_norm"], encoded.last, text.layer_norm_eps)
    # Comparing integers: ids of float type would lose large ones. argmax takes the first maximum.
    marks = ids if text.eos_token_id == LEGACY_EOS else (ids == text.eos_token_id).astype(jnp.int32)
    pooled = last[jnp.arange(len(ids)), jnp.argmax(marks, axis=-1)]
    features = pooled @ params["text_projection"]["weight"].T
    return Text(features, pooled, last, encoded)


def normalize(features: jax.Array) -> jax.Array:
    """x / |x| over the last axis, without an epsilon.

    Computed in float32 at least: squares of float16 overflow from a length of 256 on.

    Args:
        features: x [..., P].

    Returns:
        [..., P] of length 1, in the type of x.
    """
    wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    return (wide / jnp.linalg.norm(wide, axis=-1, keepdims=True)).astype(features.dtype)


def similarity(image: jax.Array, text: jax.Array, logit_scale: jax.Array) -> jax.Array:
    """[B_image, B_text]: exp(s) times the cosines of features [B, P].

    Args:
        image: [B_image, P].
        text: [B_text, P].
        logit_scale: s [].

    Returns:
        [B_image, B_text].
    """
    return jnp.exp(logit_scale) * normalize(image) @ normalize(text).T  # [B, texts]


def init(key: jax.Array, config: CLIPConfig) -> Any:
    """Random parameters; the whole tree of a `clip`, or a vision tower alone.

    Args:
        key: typed random key [].
        config: sizes of the model.

    Returns:
        A tree of float32 parameters.
    """
    keys = jax.random.split(key, 6)
    params: dict[str, Any] = {"vision_model": vit.init(keys[0], config.vision)}
    text, projection = config.text, config.projection_dim

    if text is not None or config.projected_tower:
        params["visual_projection"] = _normal(
            keys[1], projection, config.vision.hidden_size, std=config.vision.hidden_size**-0.5
        )
    if text is None:
        return params
    return params | _init_text(keys[2:], text, projection) | {"logit_scale": jnp.asarray(2.6592)}


def init_text(key: jax.Array, config: TextConfig, projection: int) -> Any:
    """Random parameters of a text tower, for an image tower of another kind.

    Args:
        key: typed random key [].
        config: sizes of the tower.
        projection: P.

    Returns:
        {"text_model", "text_projection"}, float32.
    """
    return _init_text(jax.random.split(key, 4), config, projection)


def _init_text(keys: jax.Array, config: TextConfig, projection: int) -> dict[str, Any]:
    width = config.hidden_size
    blocks = (config.num_hidden_layers, width, config.intermediate_size)
    return {
        "text_projection": _normal(keys[0], projection, width, std=width**-0.5),
        "text_model": {
            "embeddings": {
                "token_embedding": _normal(keys[1], config.vocab_size, width),
                "position_embedding": _normal(keys[3], config.max_position_embeddings, width),
            },
            "encoder": {"layers": vit.init_layers(keys[2], *blocks)},
            "final_layer_norm": vit.init_norm(width),
        },
    }


def _normal(key: jax.Array, *shape: int, std: float = 0.02) -> dict[str, jax.Array]:
    return {"weight": std * jax.random.normal(key, shape)}

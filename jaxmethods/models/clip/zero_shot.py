"""Zero-shot classification: heads from names of classes, logits from features and a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.models.clip.network import CLIPConfig, normalize, text_features
from jaxmethods.models.clip.tokenizer import tokenize


def classify(features: jax.Array, head: jax.Array, logit_scale: Any) -> jax.Array:
    """[B, C]: exp(s) normalize(features) head^T, for a head [C, P] taken as it is.

    Args:
        features: [B, P].
        head: [C, P].
        logit_scale: s, float or [].

    Returns:
        Logits [B, C].
    """
    return jnp.exp(logit_scale) * normalize(features) @ head.T  # [B, classes]


def zero_shot_head(features: jax.Array) -> jax.Array:
    """[C, P]: per class the normalized mean of its prompts' normalized features [C, K, P].

    Args:
        features: [C, K, P] of K prompts for each of C classes.

    Returns:
        [C, P], rows of length 1.
    """
    return normalize(jnp.mean(normalize(features), axis=1))


def head_from_templates(
    params: Any,
    config: CLIPConfig,
    tokenizer: Any,
    class_names: Sequence[str],
    templates: Sequence[str],
) -> jax.Array:
    """[C, P]: the zero-shot head of C classes from K templates such as "a photo of a {}.".

    Args:
        params: parameters, see `init`.
        config: sizes of the model.
        tokenizer: what `load_tokenizer` returns.
        class_names: C names.
        templates: with one `{}` (or `{c}`) where the class name belongs.

    Returns:
        [C, P] float32.

    Raises:
        ValueError: no classes or templates, or a template without a place for the class name.
    """
    for name, given in {"class_names": class_names, "templates": templates}.items():
        if isinstance(given, str) or not len(given):
            got = f"the text {given!r:.80}" if isinstance(given, str) else "none"
            raise ValueError(f"{name}: expected a list of at least one text, got {got}")
    wrong = [template for template in templates if "{}" not in template and "{c}" not in template]
    if wrong:
        raise ValueError(f"templates: expected a {{}} for the class name in {wrong[0]!r}")
    prompts = [
        template.replace("{c}", "{}").replace("{}", name)
        for name in class_names
        for template in templates
    ]
    ids, mask = tokenize(tokenizer, prompts, config)
    features = text_features(params, config, ids, mask).features
    # [classes, templates, P]
    return zero_shot_head(features.reshape(len(class_names), len(templates), -1))

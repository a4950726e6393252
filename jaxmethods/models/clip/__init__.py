"""CLIP: a vision tower and a text tower with one space of features, from and to model folders."""

from __future__ import annotations

from jaxmethods.models.clip.network import (
    PROJECTION,
    TOWERS,
    CLIPConfig,
    Loaded,
    Text,
    TextConfig,
    classify,
    config_of,
    head_from_templates,
    image_features,
    init,
    load,
    load_tokenizer,
    normalize,
    save,
    similarity,
    text_features,
    tokenize,
    zero_shot_head,
)

__all__ = [
    "PROJECTION",
    "TOWERS",
    "CLIPConfig",
    "Loaded",
    "Text",
    "TextConfig",
    "classify",
    "config_of",
    "head_from_templates",
    "image_features",
    "init",
    "load",
    "load_tokenizer",
    "normalize",
    "save",
    "similarity",
    "text_features",
    "tokenize",
    "zero_shot_head",
]

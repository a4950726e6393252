"""CLIP: a vision tower and a text tower with one space of features, from and to model folders."""

from __future__ import annotations

from jaxmethods.models.clip import contrastive
from jaxmethods.models.clip.checkpoint import PROJECTION as PROJECTION
from jaxmethods.models.clip.checkpoint import TOWERS as TOWERS
from jaxmethods.models.clip.checkpoint import Loaded as Loaded
from jaxmethods.models.clip.checkpoint import config_of, load, save
from jaxmethods.models.clip.network import CLIPConfig as CLIPConfig
from jaxmethods.models.clip.network import Text as Text
from jaxmethods.models.clip.network import TextConfig as TextConfig
from jaxmethods.models.clip.network import (
    image_features,
    init,
    init_text,
    normalize,
    similarity,
    text_features,
)
from jaxmethods.models.clip.tensors import from_tensors
from jaxmethods.models.clip.tokenizer import load_tokenizer, tokenize
from jaxmethods.models.clip.zero_shot import classify, head_from_templates, zero_shot_head

__all__ = [
    "classify",
    "config_of",
    "contrastive",
    "from_tensors",
    "head_from_templates",
    "image_features",
    "init",
    "init_text",
    "load",
    "load_tokenizer",
    "normalize",
    "save",
    "similarity",
    "text_features",
    "tokenize",
    "zero_shot_head",
]

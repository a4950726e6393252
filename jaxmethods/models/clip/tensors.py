"""CLIP from tensors by name, in Hugging Face's or open_clip's layout (RemoteCLIP, GeoRSCLIP).

    config, params = clip.from_tensors(tensors)

Sizes are read from the tensors; attention heads, which no tensor says, are one for every 64
entries, and 16 in the vision towers of ViT-H, g and G. open_clip holds queries, keys and values as
one map and projections transposed; its pooled text token is the one with the largest id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.layout import path_name
from jaxmethods.models.clip.checkpoint import shapes
from jaxmethods.models.clip.network import LEGACY_EOS, CLIPConfig, TextConfig
from jaxmethods.models.clip.vit import Activation, VisionConfig, usual_heads
from jaxmethods.models.hub.folders import HubError, some_of
from jaxmethods.models.hub.parameters import as_weights

OPEN_CLIP = "visual.conv1.weight"
"""A tensor that open_clip's vision transformers have."""
NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Sizes that OpenAI's own files hold beside the weights, and open_clip throws away."""
PREFIXES = ("module.", "model.")
"""What wrappers put before all names."""


class FromTensors(NamedTuple):
    """A model in memory."""

    config: CLIPConfig
    params: Any


def from_tensors(
    tensors: Mapping[str, Any],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    activation: Activation = "quick_gelu",
) -> FromTensors:
    """Both towers of CLIP.

    Args:
        tensors: names and arrays of a whole model, in either layout.
        vision_heads: None: one for every 64 entries, or the 16 of ViT-H, g and G.
        text_heads: None: one for every 64 entries.
        activation: "quick_gelu" of OpenAI's models, "gelu" of others (GeoRSCLIP's ViT-H/14).

    Returns:
        Config and float32 parameters.

    Raises:
        HubError: tensors that are missing, unknown, of another shape, quantized or NaN.
    """
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): own for name, own in tensors.items()}
    named = _renamed(tensors) if OPEN_CLIP in tensors else dict(tensors)
    if np.size(named.get("logit_scale", ())) == 1:  # open_clip's may be [1]
        named["logit_scale"] = np.reshape(named["logit_scale"], ())
    named = {
        name: own
        for name, own in named.items()
        if not name.endswith("position_ids") and name not in NUMBERS
    }
    config = _config(named, vision_heads, text_heads, activation)
    wanted = jax.tree_util.tree_leaves_with_path(shapes(config))
    found, missing = [], []
    for path, shape in wanted:
        before, between, after = path_name(path).replace("/", ".").partition(".layers.")
        names = [before]
        if between:
            names = [f"{before}.layers.{layer}.{after}" for layer in range(shape.shape[0])]
        missing += [name for name in names if name not in named]
        if not missing:
            leaves = [as_weights(name, named.pop(name)) for name in names]
            leaf = np.stack(leaves) if between else leaves[0]
            if leaf.shape != shape.shape:
                raise HubError(f"checkpoint: {names[0]}: expected {shape.shape}, got {leaf.shape}")
            found.append(jnp.asarray(leaf))
    if missing or named:
        parts = [("lacks", missing), ("has unknown tensors", [] if missing else sorted(named))]
        text = "; ".join(f"{what} {some_of(names)}" for what, names in parts if names)
        raise HubError(f"checkpoint of CLIP: it {text}")
    return FromTensors(config, jax.tree.unflatten(jax.tree.structure(shapes(config)), found))


def _config(
    named: Mapping[str, Any],
    vision_heads: int | None,
    text_heads: int | None,
    activation: Activation,
) -> CLIPConfig:
    tower, text = "vision_model.", "text_model."
    needed = {
        "patch": f"{tower}embeddings.patch_embedding.weight",
        "places": f"{tower}embeddings.position_embedding.weight",
        "inner": f"{tower}encoder.layers.0.mlp.fc1.weight",
        "words": f"{text}embeddings.token_embedding.weight",
        "context": f"{text}embeddings.position_embedding.weight",
        "text_inner": f"{text}encoder.layers.0.mlp.fc1.weight",
        "projection": "visual_projection.weight",
    }
    missing = [name for name in needed.values() if name not in named]
    if missing:
        raise HubError(f"checkpoint of CLIP: it lacks {some_of(missing)}")
    shape = {what: np.shape(named[name]) for what, name in needed.items()}
    width, channels, patch, _ = shape["patch"]
    grid = round((shape["places"][0] - 1) ** 0.5)
    shared = {"hidden_act": activation, "projection_dim": shape["projection"][0]}
    vision = VisionConfig(
        hidden_size=width,
        intermediate_size=shape["inner"][0],
        num_hidden_layers=_depth(named, tower),
        num_attention_heads=vision_heads or usual_heads(width),
        num_channels=channels,
        image_size=grid * patch,
        patch_size=patch,
        **shared,
    )
    words, text_width = shape["words"]
    language = TextConfig(
        vocab_size=words,
        hidden_size=text_width,
        intermediate_size=shape["text_inner"][0],
        num_hidden_layers=_depth(named, text),
        num_attention_heads=text_heads or max(text_width // 64, 1),
        max_position_embeddings=shape["context"][0],
        eos_token_id=LEGACY_EOS,
        **shared,
    )
    return CLIPConfig(vision=vision, text=language, projection_dim=shape["projection"][0])


def _depth(named: Mapping[str, Any], tower: str) -> int:
    start = f"{tower}encoder.layers."
    return 1 + max(int(name.split(".")[3]) for name in named if name.startswith(start))


WHOLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _renamed(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's tensors by Hugging Face's names; what is not known keeps its own."""
    made: dict[str, Any] = {}
    towers = {
        "visual.transformer.resblocks.": "vision_model",
        "transformer.resblocks.": "text_model",
    }
    for name, own in tensors.items():
        stem, _, part = name.rpartition(".")
        tower = next((start for start in towers if name.startswith(start)), None)
        if name in WHOLE:
            made[WHOLE[name]] = own
        elif name == "visual.proj":
            made["visual_projection.weight"] = np.asarray(own).T
        elif name == "text_projection":
            made["text_projection.weight"] = np.asarray(own).T
        elif stem in NORMS:
            made[f"{NORMS[stem]}.{part}"] = own
        elif tower is not None:
            made |= _renamed_block(name, name.removeprefix(tower), towers[tower], own)
        elif name != "attn_mask":
            made[name] = own
    return made


def _renamed_block(name: str, rest: str, tower: str, own: Any) -> dict[str, Any]:
    layer, _, inside = rest.partition(".")
    stem, _, part = inside.rpartition(".")
    start = f"{tower}.encoder.layers.{layer}"
    if inside in ("attn.in_proj_weight", "attn.in_proj_bias"):
        part = inside.removeprefix("attn.in_proj_")
        three = zip(("q_proj", "k_proj", "v_proj"), np.split(np.asarray(own), 3), strict=True)
        return {f"{start}.self_attn.{which}.{part}": third for which, third in three}
    if stem in PARTS:
        return {f"{start}.{PARTS[stem]}.{part}": own}
    return {name: own}

"""CLIP from Hugging Face folders and back, whole (`clip`) or its vision tower
(`clip_vision_model`).

folder = load("clip-vit-base-patch32")
save("path/to/copy", folder.raw, folder.params, tokenizer_from="clip-vit-base-patch32")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import ValidationError

from jaxmethods.config import Config
from jaxmethods.layout import path_name
from jaxmethods.models import hub
from jaxmethods.models.clip.network import CLIPConfig, TextConfig, init
from jaxmethods.models.clip.vit import VisionConfig
from jaxmethods.models.hub.config import Fields

PROJECTION = "visual_projection.weight"
"""Stored beside a vision tower by `CLIPVisionModelWithProjection`."""
TOWERS = ("CLIPVisionModel", "CLIPVisionModelWithProjection")
"""Classes of a vision tower alone, without and with its projection."""


class Loaded(NamedTuple):
    """A model folder in memory."""

    config: CLIPConfig
    params: Any
    raw: dict[str, Any]
    """`config.json` as it was, to be written back."""


def load(path: str | Path, dtype: Any = jnp.float32, shardings: Any = None) -> Loaded:
    """Reads a Hugging Face CLIP folder, whole (`clip`) or vision only (`clip_vision_model`).

    Args:
        path: the folder.
        dtype: of the parameters; None keeps what is stored.
        shardings: one for all leaves, or a tree with one for each.

    Returns:
        Config, parameters and the content of `config.json`.

    Raises:
        HubError: see `hub.open_folder` and `hub.read_params`; or the config is not CLIP's.
    """
    folder = hub.open_folder(path)
    config = config_of(folder.config, str(path))
    if config.text is None:
        folder = _with_prefix(folder)
        config = config.model_copy(update={"projected_tower": _has_projection(folder)})
    ignore = _buffers if config.text is not None else _not_tower(config)
    params = hub.read_params(
        folder, table(config), shapes(config), dtype=dtype, shardings=shardings, ignore=ignore
    )
    return Loaded(config, params, folder.config)


def save(
    path: str | Path, raw: Mapping[str, Any], params: Any, tokenizer_from: str | Path | None = None
) -> None:
    """Writes a folder that `transformers` opens.

    Args:
        path: must not exist, or be an empty folder.
        raw: the content of `config.json`, e.g. `Loaded.raw`.
        params: in the dtype they shall be stored in.
        tokenizer_from: a folder whose tokenizer and preprocessor files are copied along.

    Raises:
        HubError: the folder exists, or parameters don't fit the config. Nothing is left then.
    """
    config, written = config_of(raw, str(path)), dict(raw)
    if config.text is None:
        projected = "visual_projection" in params
        config = config.model_copy(update={"projected_tower": projected})
        if raw.get("architectures") is not None:
            written["architectures"] = [TOWERS[projected]]
    stored = hub.common_type(params)
    for name in ("dtype", "torch_dtype"):
        if written.get(name) is not None and not _holds(written[name], stored):
            written[name] = str(stored)  # transformers would round what it reads
    hub.write_folder(path, written, table(config), params, extra_files=tokenizer_from)


def config_of(raw: Mapping[str, Any], source: str = "config") -> CLIPConfig:
    """The sizes in a `config.json`; absent fields take Hugging Face's defaults.

    Args:
        raw: the content of `config.json`.
        source: what errors call it.

    Returns:
        The config.

    Raises:
        HubError: it is of another model type, or a field is wrong.
    """
    kind = raw.get("model_type")
    for name in ("quantization_config", "per_layer_config"):
        Fields(raw, source).refuse(name)
    try:
        if kind == "clip_vision_model":
            vision = VisionConfig(**_known(VisionConfig, raw))
            return CLIPConfig(
                vision=vision,
                text=None,
                projection_dim=vision.projection_dim,
                projected_tower=_is_projected(raw),
            )
        if kind == "clip":
            projection = raw.get("projection_dim", 512)
            vision = _tower_fields(VisionConfig, raw, "vision_config", source)
            text = _tower_fields(TextConfig, raw, "text_config", source)
            return CLIPConfig(
                vision=VisionConfig(**{**vision, "projection_dim": projection}),
                text=TextConfig(**{**text, "projection_dim": projection}),
                projection_dim=projection,
            )
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise hub.HubError(f"model {source}: config.json: {field}: {problem['msg']}") from error
    raise hub.HubError(
        f"model {source}: config.json: expected model_type clip or clip_vision_model, got {kind!r}"
    )


def shapes(config: CLIPConfig) -> Any:
    """The parameter tree with a `jax.ShapeDtypeStruct` at every leaf."""
    return jax.eval_shape(lambda: init(jax.random.key(0), config))


def table(config: CLIPConfig) -> list[hub.Tensor]:
    """Which stored tensor is which leaf: the path with dots, the layer's number after "layers"."""
    entries = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes(config)):
        name = path_name(path)
        before, between, after = name.partition("/layers/")
        if between:
            stored = f"{before}.layers.{{}}.{after}".replace("/", ".")
            entries.append(hub.whole(stored, name, leaf.shape[1:], layers=leaf.shape[0]))
        else:
            entries.append(hub.whole(name.replace("/", "."), name, leaf.shape))
    return entries


def _known(model: type[Config], raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are given; null is a value, which none of them may have."""
    return {name: raw[name] for name in model.model_fields if name in raw}


def _tower_fields(
    model: type[Config], raw: Mapping[str, Any], name: str, source: str
) -> dict[str, Any]:
    """A tower's fields. Those of `NAME_dict`, and the defaults of what it leaves out, are stronger
    than those of `NAME`: so old configs with both are read by `transformers`."""
    own, older = raw.get(name), raw.get(f"{name}_dict")
    for value in (own, older):
        if not isinstance(value, dict | None):
            raise hub.HubError(f"model {source}: config.json: {name}: expected an object")
    if older is None:
        return _known(model, own or {})
    return {**_known(model, own or {}), **model().model_dump(), **_known(model, older)}


def _buffers(name: str) -> bool:
    return name.endswith("position_ids")


def _not_tower(config: CLIPConfig) -> Any:
    """Says what else a vision tower's file may hold: it may be that of the whole model."""
    others = ("text_model.", "text_projection.", "logit_scale")
    if not config.projected_tower:
        others += (PROJECTION,)
    return lambda name: _buffers(name) or name.startswith(others)


def _with_prefix(folder: hub.Folder) -> hub.Folder:
    """A `CLIPVisionModel` as transformers 5 writes it lacks the prefix `vision_model.`."""
    if any(name.startswith("vision_model.") for name in folder.tensors):
        return folder
    return folder._replace(
        tensors={
            name if name == PROJECTION else f"vision_model.{name}": stored
            for name, stored in folder.tensors.items()
        }
    )


def _is_projected(raw: Mapping[str, Any]) -> bool:
    classes = raw.get("architectures")
    return isinstance(classes, list) and TOWERS[True] in classes


def _has_projection(folder: hub.Folder) -> bool:
    """Whether the tower has one: by its class, or else if one is stored beside the tower alone."""
    if folder.config.get("architectures"):
        return _is_projected(folder.config)
    whole = any(name.startswith("text_model.") for name in folder.tensors)
    return PROJECTION in folder.tensors and not whole


def _holds(dtype: Any, stored: Any) -> bool:
    """Whether a type (as config.json names it) holds all values of another one."""
    try:
        return jnp.promote_types(str(dtype).removeprefix("torch."), stored) == jnp.dtype(dtype)
    except TypeError:
        return False

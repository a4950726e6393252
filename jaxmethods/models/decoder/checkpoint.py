"""Decoders from Hugging Face folders and back, on one device or sharded over a mesh.

config, params = load("path/to/model", dtype=jnp.bfloat16, mesh=mesh)
save("path/to/copy", config, params, like="path/to/model")
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmethods.config import nearest, validate
from jaxmethods.layout import path_name
from jaxmethods.models.decoder.config import DecoderConfig, RopeScaling
from jaxmethods.models.decoder.families.codegen import CODEGEN_NAMES
from jaxmethods.models.decoder.families.family import NEOX_HEAD, head_name, require_full_layers
from jaxmethods.models.decoder.families.known import FAMILIES, embedding_name
from jaxmethods.models.decoder.layer import Params
from jaxmethods.models.decoder.network import RULES, init_params
from jaxmethods.models.hub.config import Fields
from jaxmethods.models.hub.folders import Folder, HubError, open_folder
from jaxmethods.models.hub.parameters import (
    common_type,
    read_params,
    same_values,
    write_folder,
)

BUFFERS = re.compile(
    r"rotary_emb\.inv_freq$|attn\.(causal_mask|masked_bias|bias)$|attention\.(bias|masked_bias)$"
)
"""Tensors that older checkpoints hold beside the parameters."""
HEAD = re.compile(r"(lm_head|embed_out)\.")
"""Tensors that have no prefix of the model behind the head."""
REPLACED = {
    "rope_parameters",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "layer_types",
    "use_sliding_window",
    "max_window_layers",
    "dtype",
    *CODEGEN_NAMES,
}
"""Fields of a source's config that `save` doesn't keep: what they say is said in another way."""


def load(
    path: str | Path, *, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> tuple[DecoderConfig, Params]:
    """Reads a model folder, straight into arrays of the mesh if there is one.

    Args:
        path: a model folder.
        dtype: of the parameters; None keeps what is stored (see `hub.read_params`).
        mesh: with axes among "data", "fsdp" and "tensor"; see `network.RULES`.

    Returns:
        The config and the parameters.

    Raises:
        HubError: the folder, its config or its tensors are not what we can read.
    """
    folder = with_table_names(open_folder(path))
    config = read_config(folder)
    shapes = jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))
    params = read_params(
        folder,
        FAMILIES[config.family].table(config),
        shapes,
        dtype=dtype,
        shardings=None if mesh is None else shardings(config, shapes, mesh),
        ignore=lambda name: (
            bool(BUFFERS.search(name)) or (config.tied and name == head_name(config))
        ),
    )
    return config, params


def save(
    path: str | Path,
    config: DecoderConfig,
    params: Params,
    *,
    like: str | Path | None = None,
    largest_file: int = 5 * 2**30,
) -> None:
    """Writes a folder that `transformers` opens.

    Args:
        path: must not exist, or be an empty folder.
        config: sizes and family of the decoder.
        params: with stacked layers.
        like: the folder the model came from; its tokenizer and further config fields are kept.
        largest_file: bytes; more than that goes into several files and an index.

    Raises:
        HubError: the folder is there already, or the family has no words for a setting of `config`.
    """
    family = FAMILIES[config.family]
    dtype = str(common_type(params))
    fields = {
        "architectures": [family.architecture],
        "model_type": config.family,
        "torch_dtype": dtype,
        "tie_word_embeddings": config.tied,
        "vocab_size": config.vocab_size,
        **family.write(config),
    }
    if like is not None:
        kept = open_folder(like).config
        fields = {name: value for name, value in kept.items() if name not in REPLACED} | fields
    _check_written(Path(path), fields, config)
    write_folder(
        path, fields, family.table(config), params, largest_file=largest_file, extra_files=like
    )


def read_config(folder: Folder) -> DecoderConfig:
    """The decoder of a folder: its `config.json`, and whether it stores a head of its own.

    Where the config says that head and embedding are one, but two different ones are stored, both
    are kept, as in transformers 5. Raises `HubError`.

    Args:
        folder: an opened model folder.

    Returns:
        The config.
    """
    folder = with_table_names(folder)
    config = _parse(folder)
    if config.tied and {head_name(config), embedding_name(config)} <= folder.tensors.keys():
        same = same_values(folder, head_name(config), embedding_name(config))
        config = config.model_copy(update={"tied": same})
    return config


def _parse(folder: Folder) -> DecoderConfig:
    source = str(folder.path / "config.json")
    name = folder.config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        hint = nearest(str(name), FAMILIES)
        raise HubError(f"model config {source}: model_type: {name!r} is not supported{hint}")
    fields = Fields(folder.config, source)
    fields.refuse("quantization_config")
    fields.refuse("per_layer_config")
    if fields.values.get("is_causal", True) is not True:
        raise fields.error("is_causal", "true", fields.values["is_causal"])
    if name != "mistral":  # whose reader knows windows
        require_full_layers(fields)
    values = FAMILIES[name].read(fields)
    values |= {"family": name, "vocab_size": fields.size("vocab_size")}
    return validate(DecoderConfig, values, source)


def with_table_names(folder: Folder) -> Folder:
    """The folder with the names of our tables, where checkpoints have two ways to say it.

    Args:
        folder: an opened model folder.

    Returns:
        The folder, whose tensors may have other names.
    """
    name, stored = folder.config.get("model_type"), dict(folder.tensors)
    if not isinstance(name, str) or name not in FAMILIES:
        return folder
    if name == "gpt_neox" and "lm_head.weight" in stored and NEOX_HEAD not in stored:
        stored[NEOX_HEAD] = stored.pop("lm_head.weight")
    config = _parse(folder)
    prefix = embedding_name(config).partition(".")[0] + "."
    if not any(tensor.startswith(prefix) for tensor in stored):  # a bare `LlamaModel`
        stored = {
            tensor if HEAD.match(tensor) else prefix + tensor: own for tensor, own in stored.items()
        }
    if config.tied and embedding_name(config) not in stored and head_name(config) in stored:
        stored[embedding_name(config)] = stored.pop(head_name(config))
    return folder._replace(tensors=stored)


def _check_written(path: Path, fields: dict[str, Any], config: DecoderConfig) -> None:
    """Refuses a model that would be another one when it is read again."""
    again = _parse(Folder(path, fields, {}))
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind != "llama3":  # its other fields mean nothing
        kept = RopeScaling(kind=scaling.kind, factor=scaling.factor)
        config = config.model_copy(update={"rope_scaling": kept})
    for name, value in config:
        if getattr(again, name) != value:
            raise HubError(
                f"model {path}: {name}: the config of {config.family} can't say {value!r}, only "
                f"{getattr(again, name)!r}"
            )


def shardings(config: DecoderConfig, params: Any, mesh: Mesh) -> Any:
    """Where each parameter lives on a mesh, by `network.RULES`; what doesn't divide is replicated.

    Key-value heads are split only if the axis divides their number.

    Args:
        config: sizes of the decoder.
        params: parameters, or their shapes.
        mesh: with axes among "data", "fsdp" and "tensor".

    Returns:
        A tree like `params` with a sharding for every leaf.
    """

    def one(path: Any, leaf: Any) -> NamedSharding:
        name = path_name(path)
        spec = next((rule.spec for rule in RULES if re.search(rule.pattern, name)), ())
        axes = []
        for axis, size in zip(spec, leaf.shape, strict=False):
            heads = re.search(r"/(key|value)/", name) and axis == "tensor"
            count = config.kv_heads if heads else size
            axes.append(axis if axis in mesh.shape and count % mesh.shape[axis] == 0 else None)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(one, params)

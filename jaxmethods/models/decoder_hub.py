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
from jaxmethods.models.decoder import RULES, init_params
from jaxmethods.models.decoder_config import DecoderConfig
from jaxmethods.models.decoder_families import FAMILIES, head_name
from jaxmethods.models.decoder_layer import Params
from jaxmethods.models.hub import Folder, HubError, open_folder, path_of, read_params, write_folder
from jaxmethods.models.hub_config import Fields

BUFFERS = re.compile(
    r"rotary_emb\.inv_freq$|attn\.(causal_mask|masked_bias|bias)$|attention\.(bias|masked_bias)$"
)
"""Tensors that older checkpoints hold beside the parameters."""


def load(
    path: str | Path, *, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> tuple[DecoderConfig, Params]:
    """Reads a model folder, straight into arrays of the mesh if there is one.

    Args:
        dtype: of the parameters; None keeps what is stored.
        mesh: with axes among "data", "fsdp" and "tensor"; see `decoder.RULES`.

    Raises:
        HubError: the folder, its config or its tensors are not what we can read.
    """
    folder = open_folder(path)
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
        params: with stacked layers.
        like: the folder the model came from; its tokenizer and further config fields are kept.
    """
    family = FAMILIES[config.family]
    dtype = str(params["embed"]["tokens"].dtype)
    fields = {
        "architectures": [family.architecture],
        "model_type": config.family,
        "torch_dtype": dtype,
        "tie_word_embeddings": config.tied,
        "vocab_size": config.vocab_size,
        **family.write(config),
    }
    if like is not None:
        kept = dict(open_folder(like).config)
        for name in ("rope_parameters", "dtype"):  # said in another way above
            kept.pop(name, None)
        fields = kept | fields
    write_folder(
        path, fields, family.table(config), params, largest_file=largest_file, extra_files=like
    )


def read_config(folder: Folder) -> DecoderConfig:
    """The decoder that a folder's `config.json` describes. Raises `HubError`."""
    source = str(folder.path / "config.json")
    name = folder.config.get("model_type")
    if name not in FAMILIES:
        hint = nearest(str(name), FAMILIES)
        raise HubError(f"model config {source}: model_type: {name!r} is not supported{hint}")
    fields = Fields(folder.config, source)
    values = FAMILIES[name].read(fields)
    values |= {"family": name, "vocab_size": fields.size("vocab_size")}
    return validate(DecoderConfig, values, source)


def shardings(config: DecoderConfig, params: Any, mesh: Mesh) -> Any:
    """Where each parameter lives on a mesh, by `decoder.RULES`; what doesn't divide is replicated.

    Key-value heads are split only if the axis divides their number.
    """

    def one(path: Any, leaf: Any) -> NamedSharding:
        name = path_of(path)
        spec = next((rule.spec for rule in RULES if re.search(rule.pattern, name)), ())
        axes = []
        for axis, size in zip(spec, leaf.shape, strict=False):
            heads = re.search(r"/(key|value)/", name) and axis == "tensor"
            count = config.kv_heads if heads else size
            axes.append(axis if axis in mesh.shape and count % mesh.shape[axis] == 0 else None)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(one, params)

"""A published speech-text model from its folder: encoder, connector and language model.

The folder has the names of the published code (`whisper_model.`, `llama_model.`, `ln_speech`,
`speech_Qformer.`, `speech_llama_proj`) as safetensors; weights saved by torch are converted first.
What its Q-Former holds and never uses (word embeddings, a text branch, a head) is left on disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.lsm.config import ConnectorConfig
from jaxmethods.lsm.connector import init_connector
from jaxmethods.models import decoder
from jaxmethods.models.decoder.checkpoint import BUFFERS, with_table_names
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.families.family import head_name
from jaxmethods.models.decoder.families.known import FAMILIES
from jaxmethods.models.decoder.layer import Params
from jaxmethods.models.hub.config import Fields
from jaxmethods.models.hub.folders import Folder, HubError, open_folder
from jaxmethods.models.hub.parameters import read_params
from jaxmethods.models.hub.tensors import Tensor, linear, whole
from jaxmethods.models.qformer import QFormerConfig
from jaxmethods.models.whisper.checkpoint import encoder_table
from jaxmethods.models.whisper.checkpoint import read_config as read_whisper_config
from jaxmethods.models.whisper.config import EncoderConfig
from jaxmethods.models.whisper.encoder import init_encoder

LANGUAGE = "llama_model."
BERT = "speech_Qformer.bert.encoder.layer.{}."
USED = (
    "speech_Qformer.bert.embeddings.LayerNorm",
    ".attention.",
    ".crossattention.",
    ".intermediate_query.",
    ".output_query.",
)


class Published(NamedTuple):
    """A whole model that was read."""

    encoder: EncoderConfig
    connector: ConnectorConfig
    language_model: DecoderConfig
    params: Params
    """`encoder`, `connector` and `language_model`."""


def load_published(path: str | Path, *, heads: int = 12, dtype: Any = jnp.float32) -> Published:
    """Reads a folder in the layout of the published code.

    The policy of windows is `reference`: with another one a clip becomes another number of tokens
    than the weights were trained with.

    Args:
        path: holds `config.json` and safetensors.
        heads: of the Q-Former, which the config doesn't say.
        dtype: of the parameters.

    Returns:
        Configs and parameters.

    Raises:
        HubError: the folder, its config or its tensors are not what we can read.
    """
    folder = open_folder(path)
    source = str(folder.path / "config.json")
    fields = Fields(folder.config, source)
    parts = {name: fields.get(name) for name in ("whisper_config", "llama_config")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise fields.error(name, "an object", part)
    encoder = read_whisper_config(
        {"model_type": "whisper", **_sized(parts["whisper_config"])}, source
    ).encoder
    llama = {"model_type": "llama", **(parts["llama_config"] or {})}
    folder, language_model = _with_language_model(folder, llama)
    connector = _connector(folder, fields, heads)
    tables = encoder_table(encoder, "whisper_model.", "encoder/")
    tables += connector_table(connector, encoder.width, language_model.width)
    tables += [
        entry._replace(
            name=f"{LANGUAGE}{entry.name}",
            leaves=tuple(f"language_model/{leaf}" for leaf in entry.leaves),
        )
        for entry in FAMILIES["llama"].table(language_model)
    ]
    shapes = jax.eval_shape(lambda key: _init(key, encoder, connector, language_model), _KEY)
    twice = {LANGUAGE + head_name(language_model)} if language_model.tied else set()
    params = read_params(
        folder, tables, shapes, dtype=dtype, ignore=lambda name: name in twice or _unused(name)
    )
    return Published(encoder, connector, language_model, params)


def _with_language_model(folder: Folder, config: dict[str, Any]) -> tuple[Folder, DecoderConfig]:
    """The folder with the names of our tables, and its language model, tied or not."""
    names = [name for name in folder.tensors if name.startswith(LANGUAGE)]
    own = {name.removeprefix(LANGUAGE): folder.tensors[name] for name in names}
    language = with_table_names(Folder(folder.path, config, own))
    others = {name: own for name, own in folder.tensors.items() if name not in names}
    renamed = {LANGUAGE + name: own for name, own in language.tensors.items()}
    return folder._replace(tensors=others | renamed), decoder.read_config(language)


_KEY = jax.eval_shape(lambda: jax.random.key(0))


def _init(
    key: jax.Array, encoder: EncoderConfig, connector: ConnectorConfig, language: DecoderConfig
) -> Params:
    return {
        "encoder": init_encoder(key, encoder),
        "connector": init_connector(key, connector, encoder.width, language.width),
        "language_model": decoder.init_params(key, language),
    }


def connector_table(config: ConnectorConfig, inputs: int, outputs: int) -> list[Tensor]:
    """The tensors of a connector under the published names.

    Args:
        config: its sizes.
        inputs: the encoder's width.
        outputs: the language model's width.

    Returns:
        Rows of a table, with leaves below `connector/`.
    """
    own = config.qformer
    queries = Tensor(
        "speech_query_tokens",
        (1, own.queries, own.width),
        ("connector/qformer/queries",),
        split=lambda tensor: [tensor[0]],
        join=lambda leaves: leaves[0][None],
    )
    return [
        queries,
        *_dense("speech_llama_proj", "connector/project", own.width, outputs),
        *_norm("ln_speech", "connector/norm", inputs),
        *qformer_table(own, inputs, "speech_Qformer.bert.", "connector/qformer"),
    ]


def qformer_table(config: QFormerConfig, inputs: int, prefix: str, leaf: str) -> list[Tensor]:
    """The tensors of a Q-Former that are used, but for its queries.

    Args:
        config: its sizes.
        inputs: width of the frames it reads.
        prefix: of the stored names.
        leaf: of the paths in the parameter tree.

    Returns:
        Rows of a table.
    """
    width, inner, layers = config.width, config.mlp_width, config.layers
    block, stack = f"{prefix}encoder.layer.{{}}.", f"{leaf}/layers"
    found = _norm(f"{prefix}embeddings.LayerNorm", f"{leaf}/norm", width)
    for theirs, ours, seen in (
        ("attention", "attention", width),
        ("crossattention", "cross", inputs),
    ):
        for name in ("query", "key", "value"):
            of = width if name == "query" else seen
            found += _dense(
                f"{block}{theirs}.self.{name}", f"{stack}/{ours}/{name}", of, width, layers
            )
        found += _dense(
            f"{block}{theirs}.output.dense", f"{stack}/{ours}/out", width, width, layers
        )
        found += _norm(f"{block}{theirs}.output.LayerNorm", f"{stack}/{ours}_norm", width, layers)
    found += _dense(f"{block}intermediate_query.dense", f"{stack}/mlp/up", width, inner, layers)
    found += _dense(f"{block}output_query.dense", f"{stack}/mlp/down", inner, width, layers)
    return found + _norm(f"{block}output_query.LayerNorm", f"{stack}/mlp_norm", width, layers)


def _dense(name: str, leaf: str, inputs: int, outputs: int, layers: int = 0) -> list[Tensor]:
    return [
        linear(f"{name}.weight", f"{leaf}/kernel", inputs, outputs, layers),
        whole(f"{name}.bias", f"{leaf}/bias", (outputs,), layers),
    ]


def _norm(name: str, leaf: str, width: int, layers: int = 0) -> list[Tensor]:
    return [
        whole(f"{name}.weight", f"{leaf}/scale", (width,), layers),
        whole(f"{name}.bias", f"{leaf}/bias", (width,), layers),
    ]


def _connector(folder: Folder, fields: Fields, heads: int) -> ConnectorConfig:
    """Sizes of the connector: of the config, and of the stored tensors where it is silent."""
    names = ("speech_query_tokens", f"{BERT.format(0)}intermediate_query.dense.weight")
    missing = [name for name in names if name not in folder.tensors]
    if missing:
        raise HubError(f"model {folder.path}: tensors are missing: {', '.join(missing)}")
    _, queries, width = folder.tensors[names[0]].shape
    if width % heads:
        raise HubError(f"heads: expected a divisor of the Q-Former's width {width}, got {heads}")
    own = QFormerConfig(
        width=width,
        layers=fields.size("speech_qformer_layer", 2),
        heads=heads,
        mlp_width=folder.tensors[names[1]].shape[0],
        queries=queries,
    )
    seconds = fields.number("second_per_frame", 0.33333)
    fields.require("second_stride", seconds, seconds)
    return ConnectorConfig(qformer=own, policy="reference", seconds=seconds)


def _sized(config: dict[str, Any] | None) -> dict[str, Any]:
    """Fields of a decoder that isn't there stand for themselves."""
    sizes = ("vocab_size", "decoder_layers", "decoder_ffn_dim")
    return dict.fromkeys(sizes, 1) | {"decoder_attention_heads": 1} | (config or {})


def _unused(name: str) -> bool:
    """Whether a stored name is of the Q-Former's parts that nothing uses, or no parameter."""
    if BUFFERS.search(name):
        return True
    return name.startswith("speech_Qformer.") and not any(part in name for part in USED)

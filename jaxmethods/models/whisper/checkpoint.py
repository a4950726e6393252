"""Whisper from Hugging Face folders and back, whole or its encoder alone.

loaded = load("path/to/whisper-small")
save("path/to/copy", loaded.raw, loaded.config, loaded.params, like="path/to/whisper-small")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.config import validate
from jaxmethods.data.log_mel import LogMelConfig
from jaxmethods.models.decoder.layer import Params
from jaxmethods.models.hub.config import Fields
from jaxmethods.models.hub.folders import Folder, HubError, open_folder, read_json
from jaxmethods.models.hub.parameters import (
    common_type,
    read_params,
    same_values,
    write_folder,
)
from jaxmethods.models.hub.tensors import Tensor, linear, whole
from jaxmethods.models.whisper.config import EncoderConfig, WhisperConfig
from jaxmethods.models.whisper.text import init_params

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
ENCODER = "model.encoder."
OTHER_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "num_key_value_heads": "encoder_attention_heads",
}
"""Other names of Whisper's fields; where both are given, transformers takes these, the last one."""
HEAD, EMBEDDING = "proj_out.weight", "model.decoder.embed_tokens.weight"
"""The head is the embedding, which some files hold a second time, unless another one is stored."""


class Loaded(NamedTuple):
    """A Whisper that was read."""

    config: WhisperConfig
    params: Params
    """`encoder` and `decoder`; `encoder` alone where that was asked for."""
    raw: dict[str, Any]
    """The content of `config.json`."""


def load(path: str | Path, *, dtype: Any = jnp.float32, encoder_only: bool = False) -> Loaded:
    """Reads a model folder.

    Args:
        path: a Hugging Face folder of any Whisper.
        dtype: of the parameters; None keeps what is stored.
        encoder_only: leave the decoder on disk.

    Returns:
        Config and parameters.

    Raises:
        HubError: the folder, its config or its tensors are not what we can read, or it was trained
            on other features.
    """
    folder = _with_prefix(open_folder(path))
    config = read_config(folder.config, str(folder.path / "config.json"))
    _check_features(folder.path, config.features)
    if config.text.tied and HEAD in folder.tensors and EMBEDDING not in folder.tensors:
        folder = folder._replace(tensors={**folder.tensors, EMBEDDING: folder.tensors[HEAD]})
    config = _with_own_head(config, folder)
    shapes = jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))
    tensors = table(config)
    if encoder_only:
        shapes = {"encoder": shapes["encoder"]}
        tensors = [entry for entry in tensors if entry.name.startswith(ENCODER)]
    params = read_params(
        folder,
        tensors,
        shapes,
        dtype=dtype,
        # Beside an encoder, whatever hears with it: a decoder, a head, a classifier.
        ignore=lambda name: (
            not name.startswith(ENCODER) if encoder_only else name == HEAD and config.text.tied
        ),
    )
    return Loaded(config, params, folder.config)


def save(
    path: str | Path,
    raw: Mapping[str, Any],
    config: WhisperConfig,
    params: Params,
    *,
    like: str | Path | None = None,
) -> None:
    """Writes a folder that `transformers` opens; what was loaded with its own type is unchanged.

    Args:
        path: must not exist, or be an empty folder.
        raw: the content of `config.json`, e.g. `Loaded.raw`.
        config: sizes, which must be those of `raw`.
        params: encoder and decoder, in the type they shall be stored in.
        like: a folder whose tokenizer and preprocessor files are copied along.

    Raises:
        HubError: the folder is there already, or `raw` says other sizes.
    """
    if not config.text.tied:
        raw = {**raw, "tie_word_embeddings": False}
    if read_config(raw, f"{path}/config.json") != config:
        raise HubError(f"model {path}: config.json: expected the sizes of {config}")
    names = [name for name in ("dtype", "torch_dtype") if raw.get(name) is not None]
    # Transformers rounds what it reads to the type that the config names.
    stored = dict.fromkeys(names, str(common_type(params)))
    write_folder(path, {**raw, **stored}, table(config), params, extra_files=like)


def read_config(raw: Mapping[str, Any], source: str = "config.json") -> WhisperConfig:
    """The sizes in a `config.json`.

    Args:
        raw: its content.
        source: what errors call it.

    Returns:
        The config.

    Raises:
        HubError: another kind of model, or a field that is missing or not supported.
    """
    renamed = {OTHER_NAMES[name]: raw[name] for name in raw if name in OTHER_NAMES}
    fields = Fields({**raw, **renamed}, source)
    fields.require("model_type", "whisper", None)
    fields.require("activation_function", "gelu", "gelu")
    fields.require("scale_embedding", False, False)
    fields.require("is_causal", True, True)
    fields.refuse("quantization_config")
    fields.refuse("per_layer_config")
    values = {
        "encoder": {
            "n_mels": fields.size("num_mel_bins", 80),
            "width": fields.size("d_model"),
            "layers": fields.size("encoder_layers"),
            "heads": fields.size("encoder_attention_heads"),
            "mlp_width": fields.size("encoder_ffn_dim"),
            "positions": fields.size("max_source_positions", 1500),
        },
        "text": {
            "vocab_size": fields.size("vocab_size"),
            "layers": fields.size("decoder_layers"),
            "heads": fields.size("decoder_attention_heads"),
            "mlp_width": fields.size("decoder_ffn_dim"),
            "positions": fields.size("max_target_positions", 448),
            "tied": fields.flag("tie_word_embeddings", True),
        },
    }
    return validate(WhisperConfig, values, f"model config {source}")


def table(config: WhisperConfig) -> list[Tensor]:
    """The tensors of a whole checkpoint."""
    width, text = config.encoder.width, config.text
    block = "model.decoder.layers.{}."
    found = encoder_table(config.encoder, ENCODER, "encoder/")
    found += [
        whole(EMBEDDING, "decoder/tokens", (text.vocab_size, width)),
        whole("model.decoder.embed_positions.weight", "decoder/positions", (text.positions, width)),
    ]
    if not text.tied:
        found.append(whole(HEAD, "decoder/head", (text.vocab_size, width)))
    for theirs, ours in (("self_attn", "attention"), ("encoder_attn", "cross")):
        place = f"decoder/layers/{ours}"
        found += _attention_rows(block + theirs, place, width, text.layers)
    found += _mlp_rows(block, "decoder/layers", width, text.mlp_width, text.layers)
    return found + _norm_rows("model.decoder.layer_norm", "decoder/final_norm", width)


def encoder_table(config: EncoderConfig, prefix: str, leaf: str) -> list[Tensor]:
    """The tensors of an encoder.

    Args:
        config: sizes.
        prefix: of the stored names.
        leaf: of the paths in the parameter tree.

    Returns:
        Rows of a table.
    """
    width, block = config.width, prefix + "layers.{}."
    found = []
    for name, inputs in (("conv1", config.n_mels), ("conv2", width)):
        found += [
            Tensor(
                f"{prefix}{name}.weight",
                (width, inputs, 3),
                (f"{leaf}{name}/kernel",),
                split=lambda tensor: [np.transpose(tensor, (2, 1, 0))],  # [3, in, out]
                join=lambda leaves: np.transpose(leaves[0], (2, 1, 0)),
            ),
            whole(f"{prefix}{name}.bias", f"{leaf}{name}/bias", (width,)),
        ]
    positions = (config.positions, width)
    found.append(whole(f"{prefix}embed_positions.weight", f"{leaf}positions", positions))
    place = f"{leaf}layers/attention"
    found += _attention_rows(f"{block}self_attn", place, width, config.layers)
    found += _mlp_rows(block, f"{leaf}layers", width, config.mlp_width, config.layers)
    return found + _norm_rows(f"{prefix}layer_norm", f"{leaf}final_norm", width)


def _attention_rows(name: str, leaf: str, width: int, layers: int) -> list[Tensor]:
    found = _norm_rows(f"{name}_layer_norm", f"{leaf}_norm", width, layers)
    for ours, theirs in ATTENTION.items():
        found.append(
            linear(f"{name}.{theirs}.weight", f"{leaf}/{ours}/kernel", width, width, layers)
        )
        if ours != "key":
            found.append(whole(f"{name}.{theirs}.bias", f"{leaf}/{ours}/bias", (width,), layers))
    return found


def _mlp_rows(name: str, leaf: str, width: int, inner: int, layers: int) -> list[Tensor]:
    found = _norm_rows(f"{name}final_layer_norm", f"{leaf}/mlp_norm", width, layers)
    for ours, theirs, inputs, outputs in (
        ("up", "fc1", width, inner),
        ("down", "fc2", inner, width),
    ):
        kernel = f"{leaf}/mlp/{ours}/kernel"
        found.append(linear(f"{name}{theirs}.weight", kernel, inputs, outputs, layers))
        found.append(whole(f"{name}{theirs}.bias", f"{leaf}/mlp/{ours}/bias", (outputs,), layers))
    return found


def _norm_rows(name: str, leaf: str, width: int, layers: int = 0) -> list[Tensor]:
    return [
        whole(f"{name}.{theirs}", f"{leaf}/{ours}", (width,), layers)
        for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    ]


def _check_features(path: Path, features: LogMelConfig) -> None:
    """Refuses what a folder's feature extractor does in another way than `log_mel`."""
    expected = {
        "feature_size": features.n_mels,
        "sampling_rate": features.rate,
        "n_fft": features.n_fft,
        "hop_length": features.hop,
        "chunk_length": features.n_samples / features.rate,
        "dither": 0.0,
        "padding_value": 0.0,
    }
    for file in (path / "preprocessor_config.json", path / "processor_config.json"):
        found = read_json(file) if file.is_file() else {}
        inner = found.get("feature_extractor")
        found = inner if isinstance(inner, dict) else found
        for name, value in expected.items():
            if found.get(name) not in (None, value):
                raise HubError(f"model file {file}: {name}: expected {value}, got {found[name]}")


def _with_own_head(config: WhisperConfig, folder: Folder) -> WhisperConfig:
    """The config of what is stored: two different tables are kept, as in transformers 5."""
    if not {HEAD, EMBEDDING} <= folder.tensors.keys():
        return config
    tied = config.text.tied and same_values(folder, HEAD, EMBEDDING)
    return config.model_copy(update={"text": config.text.model_copy(update={"tied": tied})})


def _with_prefix(folder: Folder) -> Folder:
    """A bare `WhisperModel` stores its tensors without "model.", its encoder alone without both."""
    if any(name.startswith("model.") for name in folder.tensors):
        return folder
    prefix = ENCODER if "conv1.weight" in folder.tensors else "model."
    tensors = {
        name if name == HEAD else f"{prefix}{name}": stored
        for name, stored in folder.tensors.items()
    }
    return folder._replace(tensors=tensors)

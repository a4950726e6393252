"""Adapters as a folder that the package PEFT opens beside the model they were made for.

    save_adapter("path/to/adapter", config, adapters, alpha=32, base="path/to/model")

Families that keep queries, keys and values in one tensor (GPT-NeoX, CodeGen) have one A for all
three there, ours don't: their additions can be merged, not saved apart.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save

from jaxmethods.files import staged, write_atomically
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.families.known import FAMILIES
from jaxmethods.models.decoder.lora import Adapters
from jaxmethods.models.decoder.network import init_params
from jaxmethods.models.hub.folders import HubError


def save_adapter(
    path: str | Path,
    config: DecoderConfig,
    adapters: Adapters,
    *,
    alpha: float,
    base: str | Path = "",
) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, both or neither.

    Args:
        path: the folder.
        config: of the decoder that the adapters are for.
        adapters: of `lora.init`, trained.
        alpha: additions are scaled by alpha / r.
        base: where the model is; PEFT loads it from there.

    Raises:
        HubError: the family keeps what the adapters change in a tensor with something else; there
            are no adapters, they have several ranks, are those of another decoder, or weights or
            alpha are not finite.
        FileError: the files can't be written.
    """
    names = modules(config, adapters)
    ranks = {target: own["a"].shape[-1] for target, own in adapters.items()}
    if len(set(ranks.values())) != 1:
        raise HubError(
            f"adapters: expected some of one rank, since alpha is divided by it, got {ranks}"
        )
    rank = min(ranks.values())
    if not math.isfinite(alpha):
        raise HubError(f"alpha: expected a finite number, got {alpha}")
    shapes = jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))["layers"]
    tensors = {}
    for target, own in adapters.items():
        room, name = target.split("/")
        layers, inputs, outputs = shapes[room][name]["kernel"].shape
        wanted = {"a": (layers, inputs, rank), "b": (layers, rank, outputs)}
        for part, shape in wanted.items():
            if own[part].shape != shape:
                raise HubError(
                    f"adapters: {target}/{part}: expected shape {shape}, got {own[part].shape}"
                )
        # Checkpoints have outputs first.
        first, second = (np.swapaxes(np.asarray(own[part]), 1, 2) for part in ("a", "b"))
        for part, values in (("a", first), ("b", second)):
            wrong = values.size - np.count_nonzero(np.isfinite(values))
            if wrong:
                raise HubError(
                    f"adapters: {target}/{part}: expected finite weights, got {wrong} NaN or "
                    "infinite ones"
                )
        for layer in range(config.layers):
            module = f"base_model.model.{names[target].format(layer)}"
            tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(first[layer])
            tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(second[layer])
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": alpha if isinstance(alpha, int) else float(alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in names.values()}),
    }
    with staged(Path(path)) as place:
        weights = save(tensors, metadata={"format": "pt"})
        write_atomically(place / "adapter_model.safetensors", weights)
        write_atomically(place / "adapter_config.json", json.dumps(settings, indent=2) + "\n")


def modules(config: DecoderConfig, adapters: Adapters) -> dict[str, str]:
    """Target -> the name of its module in a checkpoint, with {} for the layer.

    Args:
        config: of the decoder.
        adapters: whose targets.

    Raises:
        HubError: a target is a part of a tensor.
    """
    table = FAMILIES[config.family].table(config)
    found = {}
    for target in adapters:
        leaf = f"layers/{target}/kernel"
        (tensor,) = (tensor for tensor in table if leaf in tensor.leaves)
        if len(tensor.leaves) > 1:
            raise HubError(
                f"adapter: {config.family} keeps {target} in {tensor.name} with "
                f"{len(tensor.leaves) - 1} others; save the student merged"
            )
        found[target] = tensor.name.removesuffix(".weight")
    return found

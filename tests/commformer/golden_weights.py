"""Gives the weights of the golden files the names they have in the published code's state_dict."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from jaxmethods.commformer.config import NetworkConfig, reference
from jaxmethods.commformer.network import CommFormer

RENAMING = [
    (r"enc\.in_ln\b", "encoder.obs_encoder.0"),
    (r"enc\.in_fc\b", "encoder.obs_encoder.1"),
    (r"enc\.block\.(\d+)\.attn\b", r"encoder.blocks.\1.self_attn"),
    (r"enc\.block\b", "encoder.blocks"),
    (r"enc\.value_fc1\b", "encoder.head.0"),
    (r"enc\.value_ln\b", "encoder.head.2"),
    (r"enc\.value_fc2\b", "encoder.head.3"),
    (r"enc\.", "encoder."),
    (r"dec\.act_fc\b", "decoder.action_encoder.0"),
    (r"dec\.block\b", "decoder.blocks"),
    (r"dec\.head\b", "decoder.mlp"),
    (r"dec\.", "decoder."),
]


def state_dict(golden: Mapping[str, np.ndarray], prefix: str = "w.") -> dict[str, np.ndarray]:
    """The arrays `<prefix>*` of a golden file under the published code's tensor names."""
    state = {}
    for name, value in golden.items():
        if name.startswith(prefix):
            state[state_name(name.removeprefix(prefix))] = value
    return state


def state_name(name: str) -> str:
    for pattern, replacement in RENAMING:
        renamed, count = re.subn("^" + pattern, replacement, name)
        if count:
            return renamed
    return name


def network_of(golden: Mapping[str, np.ndarray], prefix: str = "w.") -> CommFormer:
    """The module that the weights of a golden file belong to, in the `reference` preset."""
    actions, width = golden[f"{prefix}dec.act_fc.weight"].T.shape
    shared = f"{prefix}dec.head.0.weight" in golden
    config = reference().network.model_copy(
        update={
            "embed": width,
            "heads": int(golden["num_heads"]),
            "blocks": int(golden["n_block"]),
            "action_head": "shared" if shared else "per_agent",
        }
    )
    assert isinstance(config, NetworkConfig)
    return CommFormer(config, n_agents=len(golden[f"{prefix}edges"]), n_actions=actions - 1)

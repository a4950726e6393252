"""Reads the published code's checkpoints: its PyTorch state_dict, as arrays, to our parameters.

The names are those of `transformer_<episode>.pt` of charleshsc/CommFormer (commit c6cd65ea). Its
`nn.Linear` weights are (out, in) and are transposed here, its `Conv1D` weights are (in, out)
already. Blocks, and the agents' action heads, are stacked along a leading axis.

Tensors that the published code stores but never uses have no counterpart and are left out: the
encoder's state branch (`encoder.state_encoder.*`), the decoder's own observation encoder
(`decoder.obs_encoder.*`), the constant causal masks of the attentions (`*.mask`) and, when the
configuration has no relation term, everything that belongs to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.commformer.attention import has_relation
from jaxmethods.commformer.config import NetworkConfig

UNUSED = re.compile(
    r"encoder\.state_encoder\..*|decoder\.obs_encoder\..*"
    r"|(encoder|decoder)\.blocks\.\d+\.(self_attn|attn1|attn2)\.mask"
)
RELATION = re.compile(r"edges_embed\.weight|.*\.relation_in_proj\.(weight|bias)")


def params_from_torch(state: Mapping[str, np.ndarray], config: NetworkConfig) -> dict[str, Any]:
    """Converts a state_dict of the published code.

    The numbers of agents N, actions A and observation channels D are read from the tensors.

    Args:
        state: tensor name -> array, the `state_dict` with every tensor turned into numpy; read it
            with `weights_only=True`, which cannot run code.
        config: of the network that the state was trained as.

    Returns:
        {"edges": [N, N] edge logits, "network": parameters of `CommFormer(config, N, A)`}, float32.

    Raises:
        ValueError: a tensor is missing, unknown or of the wrong shape; the message names it.
    """
    tensors = _Tensors(state, config)
    edges = tensors.take("edges", (None, None))
    n_agents = len(edges)
    edges = tensors.take("edges", (n_agents, n_agents))
    params: dict[str, Any] = {
        "encoder": _encoder(tensors),
        "decoder": _decoder(tensors),
        "head": _head(tensors, n_agents),
    }
    if has_relation(config):
        params["edge_embedding"] = tensors.take("edges_embed.weight", (2, config.embed))
    tensors.check_all_are_used()
    return jax.tree.map(jnp.asarray, {"edges": edges, "network": {"params": params}})


class _Tensors:
    """A state_dict that checks shapes and remembers what has been read."""

    def __init__(self, state: Mapping[str, np.ndarray], config: NetworkConfig) -> None:
        self.state = state
        self.config = config
        self.read: set[str] = set()

    def take(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """The tensor as float32; None in `shape` leaves a size free."""
        if name not in self.state:
            raise ValueError(f"state: tensor {name!r} is missing")
        tensor = np.asarray(self.state[name], np.float32)
        fits = len(shape) == tensor.ndim and all(
            expected in (None, size) for expected, size in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            expected = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
            raise ValueError(
                f"state: tensor {name!r} has shape {tensor.shape}, expected {expected}"
            )
        self.read.add(name)
        return tensor

    def linear(self, name: str, out: int | None, into: int | None) -> dict[str, np.ndarray]:
        """An `nn.Linear`, stored (out, in)."""
        kernel = self.take(f"{name}.weight", (out, into)).T
        return {"kernel": kernel, "bias": self.take(f"{name}.bias", (kernel.shape[1],))}

    def conv1d(self, name: str, out: int, into: int) -> dict[str, np.ndarray]:
        """A GPT-2 style `Conv1D`, stored (in, out)."""
        return {
            "kernel": self.take(f"{name}.weight", (into, out)),
            "bias": self.take(f"{name}.bias", (out,)),
        }

    def norm(self, name: str, width: int | None = None) -> dict[str, np.ndarray]:
        width = width or self.config.embed
        return {
            "scale": self.take(f"{name}.weight", (width,)),
            "bias": self.take(f"{name}.bias", (width,)),
        }

    def check_all_are_used(self) -> None:
        left = (name for name in self.state if name not in self.read)
        left = [name for name in left if not UNUSED.fullmatch(name)]
        if not has_relation(self.config):
            left = [name for name in left if not RELATION.fullmatch(name)]
        if left:
            raise ValueError(f"state: tensor {min(left)!r} is unknown to {self.config!r}")


def _encoder(tensors: _Tensors) -> dict[str, Any]:
    width = tensors.config.embed
    observation = tensors.linear("encoder.obs_encoder.1", width, None)
    norm = tensors.norm("encoder.obs_encoder.0", len(observation["kernel"]))
    return {
        "obs_in": {**observation, "scale": norm["scale"], "shift": norm["bias"]},
        "norm": tensors.norm("encoder.ln"),
        "blocks": _stack(
            {
                "attention": _attention(tensors, f"{block}.self_attn"),
                "attention_norm": tensors.norm(f"{block}.attn_layer_norm"),
                "hidden": tensors.conv1d(f"{block}.fc1", width, width),
                "out": tensors.conv1d(f"{block}.fc2", width, width),
                "norm": tensors.norm(f"{block}.ff_layer_norm"),
            }
            for block in _block_names(tensors, "encoder")
        ),
        "value_hidden": tensors.linear("encoder.head.0", width, width),
        "value_norm": tensors.norm("encoder.head.2"),
        "value_out": tensors.linear("encoder.head.3", 1, width),
    }


def _decoder(tensors: _Tensors) -> dict[str, Any]:
    width = tensors.config.embed
    return {
        "action_in": {"kernel": tensors.take("decoder.action_encoder.0.weight", (width, None)).T},
        "norm": tensors.norm("decoder.ln"),
        "blocks": _stack(
            {
                "self_attention": _attention(tensors, f"{block}.attn1"),
                "self_norm": tensors.norm(f"{block}.ln1"),
                "cross_attention": _attention(tensors, f"{block}.attn2"),
                "cross_norm": tensors.norm(f"{block}.ln2"),
                "hidden": tensors.linear(f"{block}.mlp.0", width, width),
                "out": tensors.linear(f"{block}.mlp.2", width, width),
                "norm": tensors.norm(f"{block}.ln3"),
            }
            for block in _block_names(tensors, "decoder")
        ),
    }


def _attention(tensors: _Tensors, name: str) -> dict[str, Any]:
    width = tensors.config.embed
    kernels = np.split(tensors.take(f"{name}.in_proj_weight", (3 * width, width)), 3)
    biases = np.split(tensors.take(f"{name}.in_proj_bias", (3 * width,)), 3)
    params = {
        part: {"kernel": kernel.T, "bias": bias}
        for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
    }
    params["out"] = tensors.conv1d(f"{name}.out_proj", width, width)
    if has_relation(tensors.config):
        params["relation"] = tensors.conv1d(f"{name}.relation_in_proj", 2 * width, width)
    return params


def _head(tensors: _Tensors, n_agents: int) -> dict[str, Any]:
    actions = tensors.take("decoder.action_encoder.0.weight", (None, None)).shape[1] - 1
    if tensors.config.action_head == "shared":
        return _mlp(tensors, "decoder.mlp", 2, actions)
    return _stack(_mlp(tensors, f"decoder.mlp.{i}", 1, actions) for i in range(n_agents))


def _mlp(tensors: _Tensors, name: str, hidden_layers: int, out: int) -> dict[str, Any]:
    """Norm, then hidden layers (linear, GELU, norm), then the output layer."""
    width = tensors.config.embed
    params = {"norm": tensors.norm(f"{name}.0")}
    for layer in range(hidden_layers):
        params[f"hidden_{layer}"] = tensors.linear(f"{name}.{3 * layer + 1}", width, width)
        params[f"norm_{layer}"] = tensors.norm(f"{name}.{3 * layer + 3}")
    params["out"] = tensors.linear(f"{name}.{3 * hidden_layers + 1}", out, width)
    return params


def _block_names(tensors: _Tensors, part: str) -> list[str]:
    return [f"{part}.blocks.{layer}" for layer in range(tensors.config.blocks)]


def _stack(parts: Any) -> Any:
    """Pytrees of one structure to one pytree with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)

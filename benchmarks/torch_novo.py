"""Norms of attention heads in PyTorch, the way one would write them there.

`one_at_a_time` does per candidate what the published code does: the whole Llama, its head at every
position, a causal mask, norms of every token of every layer moved to the host, of which the last
are kept. `batched` is the straightforward improvement: candidates padded on the right share a
batch, attention is fused, and what has no influence on the norms is left out. Eager mode, float32
on CPU. tests/benchmarks compares both with ours.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from jaxmethods.models.decoder.config import DecoderConfig

Layer = dict[str, Tensor]


class Llama(NamedTuple):
    """A decoder of Llama's kind; weights in PyTorch's layout (out, in)."""

    config: DecoderConfig
    embedding: Tensor
    layers: list[Layer]
    final_norm: Tensor
    head: Tensor


def from_jax(config: DecoderConfig, params: Any, device: str) -> Llama:
    """Our parameters, with stacked layers and on the host."""

    def tensor(leaf: Any) -> Tensor:
        values = torch.tensor(np.asarray(leaf, np.float32), device=device)
        return values.bfloat16() if device == "cuda" else values

    stacked = params["layers"]
    kernels = {
        **{name: stacked["attention"][name]["kernel"] for name in ("query", "key", "value", "out")},
        **{name: stacked["mlp"][name]["kernel"] for name in ("gate", "up", "down")},
    }
    scales = {name: stacked[name]["scale"] for name in ("attention_norm", "mlp_norm")}
    layers = [
        {name: tensor(kernel[i]).T.contiguous() for name, kernel in kernels.items()}
        | {name: tensor(scale[i]) for name, scale in scales.items()}
        for i in range(config.layers)
    ]
    head = tensor(params["head"]["kernel"]).T.contiguous()
    embedding = tensor(params["embed"]["tokens"])
    return Llama(config, embedding, layers, tensor(params["final_norm"]["scale"]), head)


@torch.inference_mode()
def one_at_a_time(model: Llama, sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """[N, L H]: every sequence is a pass of its own."""
    device, found = model.embedding.device, []
    for sequence in sequences:
        ids = torch.tensor(sequence, device=device)[None]
        length = ids.shape[1]
        mask = torch.full((length, length), -torch.inf, device=device).triu(1)
        x, angles = model.embedding[ids], rotation(model, length)
        norms = []
        for layer in model.layers:
            heads, attended = _attention(model, layer, x, angles, mask)
            norms.append(heads.float().norm(dim=-1).cpu())  # of every token, as published
            x = _mlp(model, layer, x + attended)
        _logits = functional.linear(_rms(model, model.final_norm, x), model.head)
        found.append(torch.stack([norm[0, -1] for norm in norms]).flatten())
    return torch.stack(found).numpy()


@torch.inference_mode()
def batched(model: Llama, sequences: Sequence[Sequence[int]], rows: int) -> np.ndarray:
    """[N, L H]: so many rows at once, those of similar length together."""
    order = np.argsort([-len(sequence) for sequence in sequences], kind="stable")
    found: list[Any] = [None] * len(sequences)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        lengths = torch.tensor([len(sequences[place]) for place in chosen])
        ids = torch.zeros((len(chosen), int(lengths.max())), dtype=torch.long)
        for row, place in zip(ids, chosen, strict=True):
            row[: len(sequences[place])] = torch.tensor(sequences[place])
        norms = _norms(model, ids.to(model.embedding.device), lengths - 1)
        for place, norm in zip(chosen, norms, strict=True):
            found[place] = norm
    return np.stack(found)


def _norms(model: Llama, ids: Tensor, last: Tensor) -> np.ndarray:
    x, angles, norms = model.embedding[ids], rotation(model, ids.shape[1]), []
    where = torch.arange(len(ids)), last
    for number, layer in enumerate(model.layers):
        if number < len(model.layers) - 1:
            heads, attended = _attention(model, layer, x, angles, None)
            x = _mlp(model, layer, x + attended)
        else:
            heads, _ = _attention(model, layer, x, angles, None, project=False)
        norms.append(heads[where].float().norm(dim=-1))
    return torch.cat(norms, dim=-1).cpu().numpy()


def rotation(model: Llama, length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, d] of the half-rotation layout."""
    config, device = model.config, model.embedding.device
    exponent = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
    angles = torch.arange(length, device=device)[:, None] * config.rope_theta**-exponent
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(model.embedding.dtype), angles.sin().to(model.embedding.dtype)


def _attention(
    model: Llama, layer: Layer, x: Tensor, angles: Any, mask: Any, project: bool = True
) -> tuple[Tensor, Tensor]:
    """Head outputs [B, T, H, d], and what they add to the residual stream."""
    config = model.config
    normed = _rms(model, layer["attention_norm"], x)
    q, k, v = (
        functional.linear(normed, layer[name]).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
        for name in ("query", "key", "value")
    )
    q, k = (x * angles[0] + _turned(x) * angles[1] for x in (q, k))
    groups = config.heads // config.kv_heads
    k, v = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (k, v))
    if mask is None:
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        scores = q @ k.transpose(2, 3) / config.head_dim**0.5 + mask
        heads = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v
    heads = heads.transpose(1, 2)
    return heads, functional.linear(heads.flatten(2), layer["out"]) if project else heads


def _mlp(model: Llama, layer: Layer, x: Tensor) -> Tensor:
    normed = _rms(model, layer["mlp_norm"], x)
    inner = functional.silu(functional.linear(normed, layer["gate"]))
    return x + functional.linear(inner * functional.linear(normed, layer["up"]), layer["down"])


def _rms(model: Llama, scale: Tensor, x: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + model.config.norm_eps)
    return scale * wide.to(x.dtype)


def _turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)

"""The same decoder in `transformers`, for `benchmarks.decoder` and `benchmarks.novo`.

Head norms are read by hooks on the output projections' inputs, as the published NoVo code does in
effect; attention is PyTorch's fused one.
"""

# PyTorch and transformers are optional:
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

Sequences = Sequence[Sequence[Sequence[int]]]


def load(folder: Path, device: str, dtype: str) -> Any:
    """A model folder, ready to run."""
    kind = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, attn_implementation="sdpa")
    return model.to(device).eval()


@torch.no_grad()
def prefill(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, V] of the token after prompts [B, T], and a cache that is thrown away."""
    return model(input_ids=ids, use_cache=True, logits_to_keep=1).logits[:, -1]


@torch.no_grad()
def continued(model: Any, ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """[B, new_tokens] most likely tokens, by `generate`."""
    tokens = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=0,
    )
    return tokens[:, ids.shape[1] :]


@torch.no_grad()
def norms_one_by_one(model: Any, sequences: Sequences) -> np.ndarray:
    """Norms [candidates, L H], every candidate a forward pass of its own with all its logits."""
    found = []
    with _norms(model) as read:
        for question in sequences:
            for ids in question:
                tokens = torch.tensor([ids], device=model.device)
                model(input_ids=tokens)
                found.append(read(torch.tensor([len(ids)], device=model.device)))
    return torch.cat(found).cpu().numpy()


@torch.no_grad()
def norms_batched(model: Any, sequences: Sequences, batch_tokens: int) -> np.ndarray:
    """The same, candidates of similar length in one padded batch, without the head."""
    flat = [ids for question in sequences for ids in question]
    order = sorted(range(len(flat)), key=lambda place: -len(flat[place]))
    found, first = {}, 0
    with _norms(model) as read:
        while first < len(order):
            width = len(flat[order[first]])
            chosen = order[first : first + max(1, batch_tokens // width)]
            first += len(chosen)
            ids = np.zeros((len(chosen), width), np.int64)
            for row, place in enumerate(chosen):
                ids[row, : len(flat[place])] = flat[place]
            lengths = torch.tensor([len(flat[place]) for place in chosen], device=model.device)
            # Causality hides the padding on the right: no mask, and so the fastest attention.
            model.model(input_ids=torch.as_tensor(ids, device=model.device), use_cache=False)
            for place, norms in zip(chosen, read(lengths), strict=True):
                found[place] = norms
    return torch.stack([found[place] for place in range(len(flat))]).cpu().numpy()


@contextmanager
def _norms(model: Any) -> Any:
    """Yields a function of lengths [B]: the norms [B, L H] of the last forward pass."""
    inputs: list[torch.Tensor] = []

    def keep(module: Any, given: tuple) -> None:
        del module
        inputs.append(given[0])

    heads = model.config.num_attention_heads
    hooks = [layer.self_attn.o_proj.register_forward_pre_hook(keep) for layer in model.model.layers]

    def read(lengths: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(lengths), device=lengths.device)
        norms = [
            values[rows, lengths - 1].unflatten(-1, (heads, -1)).float().norm(dim=-1)
            for values in inputs
        ]
        inputs.clear()
        return torch.cat(norms, dim=1)

    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()

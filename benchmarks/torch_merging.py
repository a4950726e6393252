"""Model merging in PyTorch, the way the published code does it and the way one would write it.

Run as a process of its own (`python -m benchmarks.torch_merging THREADS`): reads requests from
standard input, one JSON object a line, and answers each with one line.

    {"build": "layer", "arguments": {...}}   ->  {"numbers": [...]}
    {"call": 5}                              ->  {"seconds": 0.123, "peak_bytes": 123456}

"numbers" are a few of the results, for comparison with ours: both sides draw the same weights.
Ways of merging: "loop" is that of the published code, sample after sample and expert after expert;
"vectorized" forms the merged weights of all samples in one product.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from benchmarks import merging_inputs as inputs

Work = Callable[[], Any]


class MLP(torch.nn.Module):
    """fc2(quick_gelu(fc1 x)); its weights come from outside."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(width, inner, device="meta")
        self.fc2 = torch.nn.Linear(inner, width, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(quick_gelu(self.fc1(x)))


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def merged_mlp(base: dict, tau: dict, h: Tensor, c: Tensor, way: str) -> Tensor:
    """h [B, L, D], c [B, T] or [1, T]; base NAME -> W_0, tau NAME -> [T, ...]."""
    if way == "loop":
        module = MLP(h.shape[-1], base["fc1.bias"].shape[0])
        if len(c) == 1:
            return functional_call(module, merge_one(base, tau, c[0]), (h,))
        each = [
            functional_call(module, merge_one(base, tau, row), (x,))
            for x, row in zip(h, c, strict=True)
        ]
        return torch.stack(each)
    merged = {
        name: (c @ tau[name].flatten(1)).reshape(len(c), *origin.shape) + origin
        for name, origin in base.items()
    }
    x = h.reshape(len(c), -1, h.shape[-1])
    hidden = torch.baddbmm(merged["fc1.bias"][:, None], x, merged["fc1.weight"].transpose(1, 2))
    second = merged["fc2.weight"].transpose(1, 2)
    return torch.baddbmm(merged["fc2.bias"][:, None], quick_gelu(hidden), second).reshape(h.shape)


def merge_one(base: dict, tau: dict, c: Tensor) -> dict:
    """Expert after expert, as in the published code."""
    merged = dict(base)
    for index, weight in enumerate(c):
        for name in merged:
            merged[name] = merged[name] + weight * tau[name][index]
    return merged


def build_layer(routing: str, way: str, backward: bool, batch: int, **sizes: Any) -> Any:
    """One MoE layer without its router; gradients in h and c."""
    base, tau = (tensors(tree) for tree in inputs.layer(**sizes))
    h, c = (torch.from_numpy(x) for x in inputs.tokens(batch, **sizes))
    c = c[:1] if routing == "batch" else c
    for differentiated in (h, c):
        differentiated.requires_grad_(backward)

    def run() -> Tensor:
        if not backward:
            with torch.no_grad():
                return merged_mlp(base, tau, h, c, way)
        out = merged_mlp(base, tau, h, c, way)
        return torch.cat([g.flatten() for g in torch.autograd.grad((out * out).sum(), (c, h))])

    return run, lambda out: out.flatten()[:5]


class Tower:
    """The vision tower of CLIP, with weights NAME -> [N, ...] of stacked blocks."""

    def __init__(self, tree: Mapping[str, Any], size: inputs.Size) -> None:
        self.size, self.tree = size, tree

    def layer(self, index: int, tree: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        prefix = "encoder/layers/"
        found = {k: v for k, v in (tree or self.tree).items() if k.startswith(prefix)}
        return {k[len(prefix) :].replace("/", "."): v[index] for k, v in found.items()}

    def embed(self, pixels: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, L, D] after the first norm."""
        get = self.tree.__getitem__
        x = F.conv2d(pixels, get("embeddings/patch_embedding/weight"), stride=self.size.patch_size)
        x = x.flatten(2).transpose(1, 2)
        first = get("embeddings/class_embedding").expand(len(x), 1, -1)
        x = torch.cat([first, x], 1) + get("embeddings/position_embedding/weight")
        return norm(x, get("pre_layrnorm/weight"), get("pre_layrnorm/bias"))

    def attend(self, p: dict[str, Tensor], x: Tensor) -> Tensor:
        h = norm(x, p["layer_norm1.weight"], p["layer_norm1.bias"])

        def heads(name: str) -> Tensor:
            y = F.linear(h, p[f"self_attn.{name}.weight"], p[f"self_attn.{name}.bias"])
            return y.unflatten(-1, (self.size.num_attention_heads, -1)).transpose(1, 2)

        y = F.scaled_dot_product_attention(heads("q_proj"), heads("k_proj"), heads("v_proj"))
        y = y.transpose(1, 2).flatten(2)
        return x + F.linear(y, p["self_attn.out_proj.weight"], p["self_attn.out_proj.bias"])

    def mlp(self, p: dict[str, Tensor], x: Tensor) -> Tensor:
        h = norm(x, p["layer_norm2.weight"], p["layer_norm2.bias"])
        h = quick_gelu(F.linear(h, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
        return x + F.linear(h, p["mlp.fc2.weight"], p["mlp.fc2.bias"])

    def pool(self, x: Tensor, projection: Tensor) -> Tensor:
        get = self.tree.__getitem__
        return (
            norm(x[:, 0], get("post_layernorm/weight"), get("post_layernorm/bias")) @ projection.T
        )


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, 1e-5)


class WEMoE:
    """Routers of two layers for each block, everything else frozen."""

    def __init__(self, size: inputs.Size, tasks: int, routing: str, way: str) -> None:
        self.size, self.routing, self.way = size, routing, way
        merged, self.base, self.tau = (tensors(tree, "/") for tree in inputs.upcycled(size, tasks))
        self.tower = Tower(merged, size)
        self.routers = tensors(inputs.routers(size, tasks), "/")
        self.projection = torch.from_numpy(inputs.projection(size))

    def block(self, index: int, x: Tensor) -> Tensor:
        p = self.tower.layer(index)
        x = self.tower.attend(p, x)
        h = norm(x, p["layer_norm2.weight"], p["layer_norm2.bias"])
        get = {name: value[index] for name, value in self.routers.items()}
        hidden = F.relu(F.linear(h, get["hidden_weight"], get["hidden_bias"]))
        c = F.linear(hidden, get["weight"], get["bias"]).mean(1)
        c = c.mean(0, keepdim=True) if self.routing == "batch" else c
        base = {name.replace("/", "."): value[index] for name, value in self.base.items()}
        tau = {name.replace("/", "."): value[index] for name, value in self.tau.items()}
        return x + merged_mlp(base, tau, h, c, self.way)

    def features(self, pixels: Tensor, remat: bool = False) -> Tensor:
        x = self.tower.embed(pixels)
        for index in range(self.size.num_hidden_layers):
            x = (
                checkpoint(self.block, index, x, use_reentrant=False)
                if remat
                else self.block(index, x)
            )
        return self.tower.pool(x, self.projection)


def build_forward(routing: str, way: str, batch: int, tasks: int, **sizes: Any) -> Any:
    """Features of a batch of images through the whole routed tower."""
    size = inputs.Size(**sizes)
    model, pixels = WEMoE(size, tasks, routing, way), images(size, batch)

    def run() -> Tensor:
        with torch.no_grad():
            return model.features(pixels)

    return run, lambda out: out.flatten()[:5]


def build_adaptation(routing: str, way: str, batch: int, tasks: int, **sizes: Any) -> Any:
    """One adaptation step on one task's batch: entropy, gradient of the routers, Adam."""
    size = inputs.Size(**sizes)
    model, pixels = WEMoE(size, tasks, routing, way), images(size, batch)
    head = torch.from_numpy(inputs.head(size))
    parameters = [value.requires_grad_() for value in model.routers.values()]
    optimizer = torch.optim.Adam(parameters, 1e-4)

    def run() -> Tensor:
        optimizer.zero_grad()
        # All blocks' merged weights are kept for the backward pass otherwise: 19 GB for 16 images.
        features = model.features(pixels, remat=routing == "sample")
        logits = 100.0 * F.normalize(features, dim=-1) @ head.T
        log_p = F.log_softmax(logits, -1)
        loss = -(log_p.exp() * log_p).sum(-1).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()[None]

    return run, lambda out: out


def build_surgery(way: str, batch: int, tasks: int, rank: int, **sizes: Any) -> Any:
    """One step of SurgeryV2 on one task's batch.

    "loop": merges again and runs the expert, as the published code does in every step;
    "vectorized": merged and expert features computed once, outside.
    """
    size = inputs.Size(**sizes)
    base, stack = inputs.towers(size, tasks)
    towers = {key: torch.from_numpy(value) for key, value in stack.items()}
    expert = Tower({key: value[0] for key, value in towers.items()}, size)
    projection, pixels = torch.from_numpy(inputs.projection(size)), images(size, batch)
    modules = [torch.from_numpy(x).requires_grad_() for x in inputs.corrections(size, rank)]
    down, up, block_down, block_up = modules
    optimizer = torch.optim.Adam(modules, 1e-3)
    origin = {key: torch.from_numpy(value) for key, value in base.items()}

    def merge() -> Tower:
        merged = dict(origin)
        for index in range(tasks):
            for key in merged:
                merged[key] = merged[key] + 0.3 * (towers[key][index] - origin[key])
        return Tower(merged, size)

    def encode(tower: Tower, correct: bool) -> tuple[Tensor, Tensor]:
        x, means = tower.embed(pixels), []
        for index in range(size.num_hidden_layers):
            p = tower.layer(index)
            x = tower.mlp(p, tower.attend(p, x))
            if correct:
                x = x - F.relu(x @ block_down[index].T) @ block_up[index].T
            means.append(x.mean(1))
        z = tower.pool(x, projection)
        return (z - F.relu(z @ down.T) @ up.T if correct else z), torch.stack(means)

    with torch.no_grad():
        kept = merge(), *encode(expert, False)

    def run() -> Tensor:
        optimizer.zero_grad()
        merged, target, target_means = kept
        if way == "loop":
            with torch.no_grad():
                merged, (target, target_means) = merge(), encode(expert, False)
        z, means = encode(merged, True)
        loss = (z - target).abs().mean() + (means - target_means).abs().mean((1, 2)).sum()
        loss.backward()
        optimizer.step()
        return loss.detach()[None]

    return run, lambda out: out


def build_surgery_loop(
    way: str, steps: int, count: int, batch: int, rank: int, **sizes: Any
) -> Any:
    """Steps of Surgery on one task: "loop" runs merged model and expert in every step, as the
    published code does; "vectorized" reads their cached features."""
    size = inputs.Size(**sizes)
    down, up, _, _ = (torch.from_numpy(x).requires_grad_() for x in inputs.corrections(size, rank))
    optimizer = torch.optim.Adam([down, up], 1e-3)
    projection = torch.from_numpy(inputs.projection(size))
    if way == "loop":
        base, stack = inputs.towers(size, 1)
        merged = Tower({k: torch.from_numpy(v) for k, v in base.items()}, size)
        expert = Tower({k: torch.from_numpy(v[0]) for k, v in stack.items()}, size)
        pixels = images(size, batch)

        def encode(tower: Tower) -> Tensor:
            x = tower.embed(pixels)
            for index in range(size.num_hidden_layers):
                p = tower.layer(index)
                x = tower.mlp(p, tower.attend(p, x))
            return tower.pool(x, projection)

    features, targets = (torch.from_numpy(x[0]) for x in inputs.cached(size, 1, count))

    def run() -> Tensor:
        for _ in range(steps):
            optimizer.zero_grad()
            if way == "loop":
                with torch.no_grad():
                    z, target = encode(merged), encode(expert)
            else:
                rows = torch.randperm(len(features))[:batch]
                z, target = features[rows], targets[rows]
            loss = (z - F.relu(z @ down.T) @ up.T - target).abs().mean()
            loss.backward()
            optimizer.step()
        return loss.detach()[None]

    return run, lambda out: out


def build_static(method: str, way: str, tasks: int, **sizes: Any) -> Any:
    """Static merges of towers in memory."""
    base, stack = (
        {k: torch.from_numpy(v) for k, v in tree.items()}
        for tree in inputs.towers(inputs.Size(**sizes), tasks)
    )

    def trim_and_elect() -> Tensor:
        origin = torch.cat([value.flatten() for value in base.values()])
        vectors = torch.cat([value.flatten(1) for value in stack.values()], 1) - origin
        for vector in vectors:  # one by one, for memory
            size = vector.abs()
            vector[size < size.kthvalue(len(size) - int(0.2 * len(size))).values] = 0
        sign = vectors.sum(0).sign()
        sign[sign == 0] = sign.sum().sign()
        for vector in vectors:
            vector[vector.sign() != sign] = 0
        return origin + 0.3 * vectors.sum(0)

    def run() -> Tensor:
        if method == "ties":
            merged = trim_and_elect()
            lengths = [0, *(value.numel() for value in base.values())]
            return merged[torch.tensor(lengths[:-1]).cumsum(0)]
        merged = {}
        for key, origin in base.items():
            experts = stack[key]
            if method == "average":
                merged[key] = experts.mean(0) if way == "vectorized" else sum(experts) / tasks
            elif way == "vectorized":
                merged[key] = origin + 0.3 * (experts.sum(0) - tasks * origin)
            else:
                merged[key] = origin + 0.3 * sum(expert - origin for expert in experts)
        return torch.cat([value.flatten()[:1] for value in merged.values()])

    return run, lambda out: out[:5]


BUILDERS = {
    "layer": build_layer,
    "forward": build_forward,
    "adaptation": build_adaptation,
    "surgery_v2": build_surgery,
    "surgery_loop": build_surgery_loop,
    "static": build_static,
}


def tensors(tree: Mapping[str, np.ndarray], separator: str = ".") -> dict[str, Tensor]:
    return {key.replace("/", separator): torch.from_numpy(value) for key, value in tree.items()}


def images(size: inputs.Size, batch: int) -> Tensor:
    return torch.from_numpy(inputs.pixels(size, batch)).permute(0, 3, 1, 2).contiguous()


def serve(threads: int) -> None:
    torch.set_num_threads(threads)
    call: Work = int
    for line in sys.stdin:
        request = json.loads(line)
        if "build" in request:
            call = int  # the last one's memory goes first
            run, read = BUILDERS[request["build"]](**request["arguments"])
            call, answer = run, {"numbers": read(run()).tolist()}
        else:
            start = time.perf_counter()
            for _ in range(request["call"]):
                call()
            seconds = (time.perf_counter() - start) / request["call"]
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            answer = {"seconds": seconds, "peak_bytes": peak}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
